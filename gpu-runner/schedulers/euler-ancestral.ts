/** Euler's method with ancestral noise (k-diffusion's euler_ancestral, eta 1); as diffusers' EulerAncestralDiscreteScheduler. */
import { combine } from "./combine.ts";
import { ancestralLevels, noiseByLevel, scaleByLevel } from "./forward.ts";
import { originalAtLevel } from "./parameterization.ts";
import { eulerSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

export const eulerAncestral = stepSampler({
  schedule: eulerSchedule,
  addNoise: noiseByLevel,
  scaleInput: scaleByLevel,

  start(config, { sigmas }, { noise }) {
    return ({ index, x, output }) => {
      const sigma = sigmas[index]!;
      const original = originalAtLevel(config.prediction_type, output, x, sigma);
      const { down, up } = ancestralLevels(sigma, sigmas[index + 1]!);
      const derivative = combine([1 / sigma, x], [-1 / sigma, original]);
      return { sample: combine([1, x], [down - sigma, derivative], [up, noise()]), original };
    };
  },
});
