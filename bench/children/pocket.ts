/** A model folder's pictures, drawn in one process through the product's pipeline: `node pocket.ts <model folder> <folder for scratch files> <threads>`. */
import { z } from "zod";
import { loadDiffusionModel } from "../../gpu-runner/load.ts";
import { preparePictureModel, runPicture } from "../../gpu-runner/pipeline/run-picture.ts";
import { ENGINE_VERSION } from "../../shared/engine.ts";
import { pictureRequestSchema } from "../../shared/picture.ts";
import { peakBytes, serve } from "./serve.ts";

const [folder, cacheDir, threads] = z.tuple([z.string(), z.string(), z.coerce.number().int()]).parse(process.argv.slice(2));

const began = performance.now();
const model = await loadDiffusionModel(folder, { provider: "cpu", cacheDir, threads });
const pictureModel = await preparePictureModel(model, folder);
const load_seconds = (performance.now() - began) / 1000;

await serve(z.object({ seed: z.int(), steps: z.int() }), async ({ seed, steps }) => {
  const { hash, defaultWidth, defaultHeight } = model.description;
  const request = pictureRequestSchema.parse({
    engine_version: ENGINE_VERSION,
    task: "text-to-image",
    model: hash,
    prompt: "a red cube, on a green floor",
    negative_prompt: "",
    width: defaultWidth,
    height: defaultHeight,
    steps,
    guidance_scale: 5,
    guidance_rescale: 0,
    seed,
    sampler: "ddim",
    sampler_options: {},
    adapters: [],
    format: "png",
  });
  const start = performance.now();
  const { width, height } = await runPicture(pictureModel, request);
  const seconds = (performance.now() - start) / 1000;
  return { seconds, width, height, load_seconds, bytes: process.memoryUsage.rss(), peak_bytes: peakBytes() };
});
await model.release();
