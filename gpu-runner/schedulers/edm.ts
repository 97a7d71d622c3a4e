/**
 * Models that are preconditioned as in Karras et al., arXiv 2206.00364, table 1: their schedule, and Euler's method for them, as diffusers'
 * EDMEulerScheduler.
 */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { churn } from "./euler.ts";
import { noiseByLevel } from "./forward.ts";
import { linspace } from "./numeric.ts";
import type { Schedule } from "./schedule.ts";
import { karrasSigmas } from "./sigma-schedules.ts";
import { stepSampler } from "./step-sampler.ts";

/** Timesteps are log(sigma) / 4. With `final_sigmas_type` sigma_min Euler's class ends at the last level again, DPM-Solver's at the setting. */
export function edmSchedule(config: SchedulerConfig, steps: number, repeatsLast = false): Schedule {
  const { sigma_max: highest, sigma_min: lowest } = config;
  if (!Number.isInteger(steps) || steps < 1) throw new RangeError(`steps: expected a positive integer, got ${steps}`);
  if (highest === null || lowest === null) throw new RangeError("sigma_min, sigma_max: expected numbers, got null");
  const levels =
    config.sigma_schedule === "karras"
      ? karrasSigmas(highest, lowest, config.rho ?? 7, steps)
      : linspace(Math.log(lowest), Math.log(highest), steps).map(Math.exp).reverse();
  return {
    timesteps: levels.map(sigma => Math.fround(0.25 * Math.log(Math.fround(sigma)))),
    sigmas: Float32Array.from([...levels, config.final_sigmas_type === "zero" ? 0 : repeatsLast ? levels.at(-1)! : lowest]),
    alphasCumprod: new Float32Array(),
    initNoiseSigma: Math.sqrt(highest ** 2 + 1),
  };
}

/** c_in of table 1. */
export function edmScale({ sigmas }: Schedule, x: Float32Array, position: number, { sigma_data }: SchedulerConfig): Float32Array {
  return combine([1 / Math.sqrt(sigmas[position]! ** 2 + sigma_data ** 2), x]);
}

/** Predicted x0: c_skip x + c_out F of table 1. */
export function edmOriginal({ prediction_type, sigma_data }: SchedulerConfig, output: Float32Array, x: Float32Array, sigma: number) {
  if (prediction_type === "sample")
    throw new RangeError('prediction_type: expected "epsilon" or "v_prediction" of an EDM model, got "sample"');
  const sum = sigma ** 2 + sigma_data ** 2;
  const scale = (sigma * sigma_data) / Math.sqrt(sum);
  return combine([sigma_data ** 2 / sum, x], [prediction_type === "epsilon" ? scale : -scale, output]);
}

export const edmEuler = stepSampler({
  schedule: (config, steps) => edmSchedule(config, steps, true),
  addNoise: noiseByLevel,
  scaleInput: edmScale,

  start(config, { timesteps, sigmas }, { noise }) {
    return ({ index, x, output }) => {
      const sigma = sigmas[index]!;
      const raised = sigma * (1 + churn(config, sigma, timesteps.length));
      const risen = raised > sigma ? combine([1, x], [config.s_noise * Math.sqrt(raised ** 2 - sigma ** 2), noise()]) : x;
      const original = edmOriginal(config, output, risen, raised);
      const derivative = combine([1 / raised, risen], [-1 / raised, original]);
      return { sample: combine([1, risen], [sigmas[index + 1]! - raised, derivative]), original };
    };
  },
});
