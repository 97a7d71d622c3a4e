/** Euler's method with ancestral noise (k-diffusion's euler_ancestral, eta 1); as diffusers' EulerAncestralDiscreteScheduler. */
import { combine } from "./combine.ts";
import { euler } from "./euler.ts";
import { originalAtLevel, signalAt } from "./parameterization.ts";
import type { Sampler } from "./sampler.ts";

export const eulerAncestral: Sampler = {
  schedule: euler.schedule,
  addNoise: euler.addNoise,

  async sample(config, { timesteps, sigmas, initNoiseSigma }, { model, latents, noise, onStep, signal }) {
    let x = combine([initNoiseSigma, latents]);
    for (const [i, t] of timesteps.entries()) {
      signal?.throwIfAborted();
      const [sigma, next] = [sigmas[i]!, sigmas[i + 1]!];
      const output = await model(combine([signalAt(sigma).alpha, x]), t);
      const original = originalAtLevel(config.prediction_type, output, x, sigma);
      // Step down past the next level, then add the noise that lifts the latents to it.
      const up = Math.sqrt((next ** 2 * (sigma ** 2 - next ** 2)) / sigma ** 2);
      const down = Math.sqrt(next ** 2 - up ** 2);
      const derivative = combine([1 / sigma, x], [-1 / sigma, original]);
      x = combine([1, x], [down - sigma, derivative], [up, noise()]);
      await onStep?.({ step: i + 1, steps: timesteps.length, sample: x, original });
    }
    return x;
  },
};
