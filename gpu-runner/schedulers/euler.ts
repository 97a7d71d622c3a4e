/** Euler's method with optional churn (Karras et al., arXiv 2206.00364, algorithm 2); as diffusers' EulerDiscreteScheduler. */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { noiseByLevel, scaleByLevel } from "./forward.ts";
import { originalAtLevel } from "./parameterization.ts";
import { eulerSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

export const euler = stepSampler({
  schedule: eulerSchedule,
  addNoise: noiseByLevel,
  scaleInput: scaleByLevel,

  start(config, { sigmas }, { noise }) {
    return ({ index, x, output }) => {
      const [sigma, next] = [sigmas[index]!, sigmas[index + 1]!];
      const raised = sigma * (1 + churn(config, sigma, sigmas.length - 1));
      const risen = raised > sigma ? combine([1, x], [config.s_noise * Math.sqrt(raised ** 2 - sigma ** 2), noise()]) : x;
      // The model has seen the level before the churn; as diffusers, only epsilon is read at the raised one.
      const original = originalAtLevel(config.prediction_type, output, risen, config.prediction_type === "epsilon" ? raised : sigma);
      const derivative = combine([1 / raised, risen], [-1 / raised, original]);
      return { sample: combine([1, risen], [next - raised, derivative]), original };
    };
  },
});

/** By how much the noise level is raised before a step: gamma of algorithm 2. */
export function churn({ s_churn, s_tmin, s_tmax }: SchedulerConfig, sigma: number, steps: number): number {
  return sigma >= s_tmin && sigma <= (s_tmax ?? Number.POSITIVE_INFINITY) ? Math.min(s_churn / steps, Math.SQRT2 - 1) : 0;
}
