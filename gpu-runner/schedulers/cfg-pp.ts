/**
 * CFG++ (Chung et al., arXiv 2406.08070): the guided picture, and noise from the unconditional prediction; as ComfyUI's
 * sample_euler_ancestral_cfg_pp (Euler: eta 0) and sample_dpmpp_2m_cfg_pp.
 */
import { combine } from "./combine.ts";
import { ancestralLevels, noiseByLevel, scaleByLevel } from "./forward.ts";
import { originalAtLevel } from "./parameterization.ts";
import { eulerSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

export const eulerCfgPp = stepSampler({
  schedule: eulerSchedule,
  addNoise: noiseByLevel,
  scaleInput: scaleByLevel,

  start(config, { sigmas }, { noise }) {
    return ({ index, x, output, unconditional }) => {
      const sigma = sigmas[index]!;
      const original = originalAtLevel(config.prediction_type, output, x, sigma);
      const without = originalAtLevel(config.prediction_type, unconditional, x, sigma);
      const { down, up } = ancestralLevels(sigma, sigmas[index + 1]!, config.eta);
      const fresh = up > 0 ? ([[up * config.s_noise, noise()]] as const) : [];
      return { sample: combine([1, original], [down / sigma, x], [-down / sigma, without], ...fresh), original };
    };
  },
});

export const dpmpp2mCfgPp = stepSampler({
  schedule: eulerSchedule,
  addNoise: noiseByLevel,
  scaleInput: scaleByLevel,

  start(config, { sigmas }) {
    let last: Float32Array | null = null;
    return ({ index, x, output, unconditional }) => {
      const [sigma, next] = [sigmas[index]!, sigmas[index + 1]!];
      const original = originalAtLevel(config.prediction_type, output, x, sigma);
      const without = originalAtLevel(config.prediction_type, unconditional, x, sigma);
      const ratio = next / sigma;
      const terms: [number, Float32Array][] = [
        [1, original],
        [ratio, x],
        [-ratio, without],
      ];
      if (last !== null && next > 0) {
        // Half the step's weight along the difference to the step before, over their ratio in log sigma.
        const weight = ((1 - ratio) * Math.log(sigma / next)) / (2 * Math.log(sigmas[index - 1]! / sigma));
        terms.push([weight, original], [-weight, last]);
      }
      last = without;
      return { sample: combine(...terms), original };
    };
  },
});
