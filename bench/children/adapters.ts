/**
 * The product's UNet with LoRAs in a process of its own:
 * `node adapters.ts <config.json> <weights.safetensors> <folder for scratch files> <threads> <rank>`.
 */
import { z } from "zod";
import type { LoraAdapter, WeightChange } from "../../gpu-runner/adapters/adapter.ts";
import type { LoraUse } from "../../gpu-runner/components.ts";
import { buildUnet, plainUnet, type UnetFeatures } from "../../gpu-runner/models/unet.ts";
import { conditionFeeds } from "../../gpu-runner/models/unet-feeds.ts";
import { AdaptedGraph } from "../../gpu-runner/serving/adapted-graph.ts";
import { SessionCache } from "../../gpu-runner/session.ts";
import { readUnetConfig } from "../../gpu-runner/weights/configs.ts";
import { weightsOfFile } from "../../gpu-runner/weights/weights.ts";
import { peakBytes, serve } from "./serve.ts";

const [configFile, weightsFile, cacheDir, threads, rank] = z
  .tuple([z.string(), z.string(), z.string(), z.coerce.number().int(), z.coerce.number().int()])
  .parse(process.argv.slice(2));
const config = readUnetConfig(configFile);

const shapes = new Map<string, readonly number[]>();
const stored = weightsOfFile(weightsFile);
buildUnet(config, {
  take(name, shape) {
    shapes.set(name, shape);
    return stored.take(name, shape);
  },
});
const unet = new AdaptedGraph(
  {
    key: "bench",
    component: "unet",
    weights: stored,
    shapes,
    build: (weights, features: UnetFeatures) => buildUnet(config, weights, features),
  },
  new SessionCache(),
  // Every session in its optimised form from the first run on: the steady state is what is compared.
  { provider: "cpu", cacheDir, threads, progressiveFrom: Number.POSITIVE_INFINITY },
);
const loras = [1, 2, 3, 4].map(randomLora);

/** Batch items by the LoRAs that each has, as indices. */
const requestSchema = z.object({ side: z.int(), items: z.array(z.array(z.int().min(0).max(3))) });

await serve(requestSchema, async ({ side, items }) => {
  const feeds = conditionFeeds(config, inputs(side, items.length));
  const start = performance.now();
  const { prediction } = await unet.run(
    plainUnet,
    feeds,
    items.map(list => ({ loras: list.map((index): LoraUse => ({ adapter: loras[index]!, weight: 0.8, dora: null })), hypernetworks: [] })),
  );
  const seconds = (performance.now() - start) / 1000;
  const { data } = prediction!;
  return { seconds, peak_bytes: peakBytes(), rms: Math.sqrt(data.reduce((sum, value) => sum + value * value, 0) / data.length) };
});
await unet.release();

/** Pairs for the projections of every attention and feed-forward layer, which is what most published LoRAs have. */
function randomLora(seed: number): LoraAdapter {
  const changes = [...shapes].flatMap(([name, shape]): WeightChange[] => {
    if (!/\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)\.weight$/.test(name)) return [];
    const [out, width] = shape as [number, number];
    const down = Float32Array.from({ length: rank * width }, (_, i) => Math.sin(i * 1.3 + seed) / Math.sqrt(width));
    const up = Float32Array.from({ length: out * rank }, (_, i) => Math.cos(i * 1.7 + seed) / 100);
    const merge = (): never => {
      throw new Error(`${name}: expected to be served as an input, got merged`);
    };
    return [{ component: "unet", name, shape, lowRank: { rank, down, up, scale: 1 }, merge }];
  });
  return { kind: "lora", hash: `sha256:${seed}`, report: { layout: "bench", used: [], skipped: [] }, changes, bundled: [] };
}

function inputs(side: number, batch: number) {
  const wave = (shape: readonly number[], f: (x: number) => number) => ({
    data: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => f(i)),
    shape,
  });
  return {
    sample: wave([batch, config.inChannels, side, side], Math.sin),
    timesteps: Array<number>(batch).fill(500),
    encoderHiddenStates: wave([batch, 77, config.crossAttentionDim], Math.cos),
  };
}
