/** Reports of a batch's steps to each of its items, with previews only so often that they cost little. */
import type { StepReport } from "../schedulers/sampler.ts";
import type { PictureRun } from "./context.ts";
import type { PassPlan } from "./pass.ts";
import { drawPreview } from "./preview.ts";
import { split } from "./tensors.ts";

/** Previews take at most one part in this many of the time. */
const costShare = 20;

/** Steps count through all passes. @returns for each pass by its place, what to call after its steps */
export function batchProgress(
  runs: readonly PictureRun[],
  passes: readonly PassPlan[],
): (pass: number) => (report: StepReport) => Promise<void> {
  const calls = passes.map(({ begin, end }) => Math.max(end - begin, 0));
  const steps = calls.reduce((sum, count) => sum + count, 0);
  const lastPreviews = runs.map(() => performance.now());
  let cost = 0;
  return pass => {
    const earlier = calls.slice(0, pass).reduce((sum, count) => sum + count, 0);
    const { pictureModel, shape } = passes[pass]!;
    return async report => {
      const step = earlier + report.step;
      const originals = split(report.original, runs.length);
      for (const [i, { onProgress, previewMs = 500 }] of runs.entries()) {
        if (!onProgress) continue;
        const began = performance.now();
        const hasPreview = step < steps && began - lastPreviews[i]! >= Math.max(previewMs, costShare * cost);
        if (!hasPreview) onProgress({ step, steps });
        else {
          onProgress({ step, steps, preview: await drawPreview(pictureModel, originals[i]!, shape) });
          lastPreviews[i] = performance.now();
          // One pixel a latent costs next to nothing.
          if (pictureModel.model.decodePreview) cost = lastPreviews[i]! - began;
        }
      }
    };
  };
}
