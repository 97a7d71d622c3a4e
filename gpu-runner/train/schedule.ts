/** The learning rate's course. */
import type { OptimizerSettings } from "../../shared/training.ts";

/** Factor of the learning rate in step 0 .. steps - 1: a linear warm-up, then constant, or falling to zero linearly or as half a cosine. */
export function rateFactor(
  { schedule, warmup_steps }: Pick<OptimizerSettings, "schedule" | "warmup_steps">,
  step: number,
  steps: number,
): number {
  if (step < warmup_steps) return (step + 1) / warmup_steps;
  const share = (step - warmup_steps) / Math.max(steps - warmup_steps, 1);
  const courses = {
    constant: () => 1,
    linear: () => 1 - share,
    cosine: () => 0.5 * (1 + Math.cos(Math.PI * share)),
  } as const satisfies Record<OptimizerSettings["schedule"], () => number>;
  return courses[schedule]();
}
