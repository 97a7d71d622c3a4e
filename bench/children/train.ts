/**
 * LoRA training steps of the product in a process of its own: `node train.ts <config.json> <weights.safetensors> <folder for scratch
 * files> <threads> [recomputed]`.
 */
import { z } from "zod";
import { trainedInputs } from "../../gpu-runner/models/layers.ts";
import { buildUnet, plainUnet } from "../../gpu-runner/models/unet.ts";
import { AdamW } from "../../gpu-runner/train/optimizer.ts";
import { type TrainedTensor, TrainedTensors } from "../../gpu-runner/train/trained-tensors.ts";
import { UnetStep } from "../../gpu-runner/train/unet-step.ts";
import { readUnetConfig } from "../../gpu-runner/weights/configs.ts";
import { weightsOfFile } from "../../gpu-runner/weights/weights.ts";
import { peakBytes, serve } from "./serve.ts";

const [configFile, weightsFile, cacheDir, threads, mode] = z
  .tuple([z.string(), z.string(), z.string(), z.coerce.number().int(), z.literal("recomputed").optional()])
  .parse(process.argv.slice(2));
const config = readUnetConfig(configFile);
const weights = weightsOfFile(weightsFile);
const rank = 8;

const began = performance.now();
/** Every projection of every attention, [out, in] by name. */
const targets = buildUnet(config, weights).weights.filter(({ name }) => /\.attn[12]\.to_(q|k|v|out\.0)\.weight$/.test(name));
const tensors = new TrainedTensors(
  targets.flatMap(({ name, shape }): TrainedTensor[] => {
    const [out, width] = shape as [number, number];
    const { down, up } = trainedInputs(name);
    return [
      { name: down, shape: [rank, width], group: "main" },
      { name: up, shape: [out, rank], group: "main" },
    ];
  }),
);
for (const { name } of tensors.list.filter((_, i) => i % 2 === 0))
  tensors.value(name).data.forEach((_, i, data) => {
    data[i] = Math.sin(i) / Math.sqrt(rank);
  });
const names = tensors.list.map(({ name }) => name);
const pairs = new Map(targets.map(({ name }) => [name, { rank, scale: 1, dora: null }]));
const shapes = new Map(targets.map(({ name, shape }) => [name, shape as readonly number[]]));
const step = new UnetStep({ hash: "bench", config, weights, shapes }, { ...plainUnet, trained: { weights: new Set(), pairs } }, names, {
  provider: "cpu",
  cacheDir,
  threads,
  recompute: mode === "recomputed",
});
const optimizer = new AdamW(tensors, { betas: [0.9, 0.999], weight_decay: 0.01, epsilon: 1e-8, clip_norm: null, moments: "float32" });
const load_seconds = (performance.now() - began) / 1000;

let steps = 0;
await serve(z.object({ side: z.int() }), async ({ side }) => {
  const shape = [1, config.inChannels, side, side];
  const count = config.inChannels * side * side;
  const text = {
    data: Float32Array.from({ length: 77 * config.crossAttentionDim }, (_, i) => Math.cos(i)),
    shape: [1, 77, config.crossAttentionDim],
  };
  const batch = {
    sample: { data: Float32Array.from({ length: count }, (_, i) => Math.sin(i)), shape },
    target: { data: new Float32Array(count), shape },
    lossWeights: { data: new Float32Array(side * side).fill(1), shape: [1, 1, side, side] },
    timesteps: [500],
    inputIds: [],
    encoderHiddenStates: text,
    added: null,
    controlMap: null,
    imageEmbeds: null,
    concepts: [0],
    references: null,
  };
  const start = performance.now();
  const feeds = Object.fromEntries(names.map(name => [name, tensors.value(name)]));
  const { losses, gradients } = await step.gradients(batch, { encoderHiddenStates: text, pooled: null }, feeds);
  for (const name of names) tensors.gradient(name).data.set(gradients[name]!.data);
  await optimizer.step(++steps, { main: 1e-4, text: 0 });
  const seconds = (performance.now() - start) / 1000;
  return { seconds, load_seconds, peak_bytes: peakBytes(), loss: losses[0]! };
});
await step.release();
