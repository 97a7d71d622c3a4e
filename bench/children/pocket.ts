/** A model folder's pictures, drawn in one process through the product's pipeline: `node pocket.ts <model folder> <folder for scratch files> <threads>`. */
import { z } from "zod";
import { AdapterStore } from "../../gpu-runner/adapters/store.ts";
import { loadDiffusionModel } from "../../gpu-runner/load.ts";
import { preparePictureModel } from "../../gpu-runner/pipeline/prepare-model.ts";
import { runPicture } from "../../gpu-runner/pipeline/run-picture.ts";
import { ENGINE_VERSION } from "../../shared/engine.ts";
import { pictureRequestSchema, plainPicture } from "../../shared/picture.ts";
import { peakBytes, serve } from "./serve.ts";

const [folder, cacheDir, threads] = z.tuple([z.string(), z.string(), z.coerce.number().int()]).parse(process.argv.slice(2));

const began = performance.now();
const model = await loadDiffusionModel(folder, { provider: "cpu", cacheDir, threads });
const pictureModel = await preparePictureModel(model);
const noFiles = (name: string): never => {
  throw new Error(`expected a picture without files, got one that needs ${name}`);
};
const context = {
  inputs: { file: noFiles, adapter: noFiles },
  adapters: new AdapterStore({ provider: "cpu", cacheDir, budget: 0 }),
  model: async () => pictureModel,
};
const load_seconds = (performance.now() - began) / 1000;

await serve(z.object({ seed: z.int(), steps: z.int() }), async ({ seed, steps }) => {
  const { hash, defaultWidth, defaultHeight } = model.description;
  const request = pictureRequestSchema.parse({
    engine_version: ENGINE_VERSION,
    ...plainPicture,
    model: hash,
    prompt: "a red cube, on a green floor",
    width: defaultWidth,
    height: defaultHeight,
    steps,
    guidance_scale: 5,
    seed,
    sampler: "ddim",
  });
  const start = performance.now();
  const { width, height } = await runPicture(context, request);
  const seconds = (performance.now() - start) / 1000;
  return { seconds, width, height, load_seconds, bytes: process.memoryUsage.rss(), peak_bytes: peakBytes() };
});
await model.release();
