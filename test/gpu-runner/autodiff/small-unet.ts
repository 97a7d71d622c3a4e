/** A small UNet with gradients of low-rank pairs or of every weight, packed as trainings have it. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { bindSizes, differentiate, gradientName } from "../../../gpu-runner/autodiff/differentiate.ts";
import { packOutputs } from "../../../gpu-runner/autodiff/packs.ts";
import type { Graph } from "../../../gpu-runner/graph/ir.ts";
import { trainedInputs } from "../../../gpu-runner/models/layers.ts";
import { buildUnet, plainUnet } from "../../../gpu-runner/models/unet.ts";
import { readUnetConfig } from "../../../gpu-runner/weights/configs.ts";
import { writeRandomWeights } from "../../../gpu-runner/weights/random-weights.ts";
import { weightsOfFile } from "../../../gpu-runner/weights/weights.ts";

/** @param side of the latents, in pixels */
export function smallUnet(folder: string, { side, isWhole, recompute }: { side: number; isWhole: boolean; recompute: boolean }): Graph {
  const [configFile, weightsFile] = [join(folder, "config.json"), join(folder, "weights.safetensors")];
  const types = { down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types: ["CrossAttnUpBlock2D", "UpBlock2D"] };
  writeFileSync(configFile, JSON.stringify({ block_out_channels: [32, 64], ...types, cross_attention_dim: 32, attention_head_dim: 2 }));
  const config = readUnetConfig(configFile);
  writeRandomWeights(weightsFile, weights => buildUnet(config, weights));
  const weights = weightsOfFile(weightsFile);
  const names = buildUnet(config, weights).weights.map(({ name }) => name);
  const targets = names.filter(name => /\.attn[12]\.to_(q|k|v|out\.0)\.weight$/.test(name));
  const pairs = new Map(targets.map(name => [name, { rank: 4, scale: 1, dora: null }]));
  const trained = isWhole ? { weights: new Set(names), pairs: new Map() } : { weights: new Set<string>(), pairs };
  const graph = buildUnet(config, weights, { ...plainUnet, trained });
  const sizes: Record<string, readonly number[]> = { sample: [2, 4, side, side], encoder_hidden_states: [2, 77, 32] };
  const bound = bindSizes(graph, new Map([...graph.symbols()].map(([name, { input, axis }]) => [name, sizes[input.name]?.[axis] ?? 2])));
  const wrt = isWhole ? names : targets.flatMap(name => [trainedInputs(name).down, trainedInputs(name).up]);
  return packOutputs(differentiate(bound, { of: ["prediction"], wrt, recompute }), gradientName("")).graph;
}
