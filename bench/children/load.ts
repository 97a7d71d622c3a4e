/**
 * A model's first steps in a process of its own: `node load.ts <model> <cache folder> <threads> <side of the latents>`. It takes a step for every line that it
 * reads, the first of which opens the sessions.
 */
import { z } from "zod";
import { loadDiffusionModel } from "../../gpu-runner/load.ts";
import { peakBytes, serve } from "./serve.ts";

const [path, cacheDir, threads, side] = z
  .tuple([z.string(), z.string(), z.coerce.number().int(), z.coerce.number().int()])
  .parse(process.argv.slice(2));

/** `performance.now()` counts from the start of the process. */
const sinceStart = (): number => performance.now() / 1000;

const model = await loadDiffusionModel(path, { provider: "cpu", cacheDir, threads });
const loaded = sinceStart();
const ids = [49406, ...Array<number>(76).fill(49407)];

await serve(z.object({}), async () => {
  const text = await model.encodeText({ encoder: 0, inputIds: [ids] });
  const channels = model.description.unetInputChannels;
  const data = Float32Array.from({ length: channels * side * side }, (_, i) => Math.sin(i));
  const began = performance.now();
  await model.predict({ sample: { data, shape: [1, channels, side, side] }, timesteps: [500], encoderHiddenStates: text.normed(0) });
  return {
    loaded,
    stepped: sinceStart(),
    step: (performance.now() - began) / 1000,
    bytes: process.memoryUsage.rss(),
    peak_bytes: peakBytes(),
  };
});
await model.release();
