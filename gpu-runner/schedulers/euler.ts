/** Euler's method with optional churn (Karras et al., arXiv 2206.00364, algorithm 2); as diffusers' EulerDiscreteScheduler. */
import { combine } from "./combine.ts";
import { originalAtLevel, signalAt } from "./parameterization.ts";
import { type Sampler, stepIndex } from "./sampler.ts";
import { eulerSchedule } from "./schedule.ts";

export const euler: Sampler = {
  schedule: eulerSchedule,

  async sample(config, { timesteps, sigmas, initNoiseSigma }, { model, latents, noise, onStep, signal }) {
    let x = combine([initNoiseSigma, latents]);
    for (const [i, t] of timesteps.entries()) {
      signal?.throwIfAborted();
      const [sigma, next] = [sigmas[i]!, sigmas[i + 1]!];
      const output = await model(combine([signalAt(sigma).alpha, x]), t);
      const churns = sigma >= config.s_tmin && sigma <= (config.s_tmax ?? Number.POSITIVE_INFINITY);
      const gamma = churns ? Math.min(config.s_churn / timesteps.length, Math.SQRT2 - 1) : 0;
      const raised = sigma * (1 + gamma);
      if (gamma > 0) x = combine([1, x], [config.s_noise * Math.sqrt(raised ** 2 - sigma ** 2), noise()]);
      // The model has seen the level before the churn; as diffusers, only epsilon is read at the raised one.
      const original = originalAtLevel(config.prediction_type, output, x, config.prediction_type === "epsilon" ? raised : sigma);
      const derivative = combine([1 / raised, x], [-1 / raised, original]);
      x = combine([1, x], [next - raised, derivative]);
      await onStep?.({ step: i + 1, steps: timesteps.length, sample: x, original });
    }
    return x;
  },

  addNoise(schedule, original, noise, timestep) {
    return combine([1, original], [schedule.sigmas[stepIndex(schedule, timestep)]!, noise]);
  },
};
