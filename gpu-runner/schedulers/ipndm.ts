/** Improved PNDM (Liu et al., arXiv 2202.09778): Adams-Bashforth on the direction towards noise. */
import { adamsBashforth } from "./adams-bashforth.ts";
import { combine } from "./combine.ts";
import { noiseByLevel, scaleByLevel } from "./forward.ts";
import { originalAtLevel } from "./parameterization.ts";
import { eulerSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

/** For models on a circle of continuous time 0..1 (alpha = cos, sigma = sin), as diffusers' IPNDMScheduler. */
export const ipndmContinuous = stepSampler({
  schedule(config, steps) {
    if (!Number.isInteger(steps) || steps < 1) throw new RangeError(`steps: expected a positive integer, got ${steps}`);
    const betas = config.trained_betas ?? Array.from({ length: steps + 1 }, (_, i) => Math.sin(((1 - i / steps) * Math.PI) / 2) ** 2);
    const timesteps = betas.slice(0, -1).map(beta => (Math.atan2(beta, Math.sqrt(1 - beta ** 2)) / Math.PI) * 2);
    return { timesteps, sigmas: Float32Array.from(betas), alphasCumprod: new Float32Array(), initNoiseSigma: 1 };
  },

  /** `sigmas` are sines: x = cos x0 + sin epsilon. */
  addNoise({ sigmas }, original, noise, position) {
    const sigma = sigmas[position]!;
    return combine([Math.sqrt(1 - sigma ** 2), original], [sigma, noise]);
  },

  start(_config, { sigmas }) {
    const history: Float32Array[] = [];
    return ({ index, x, output }) => {
      const [sigma, next] = [sigmas[index]!, sigmas[index + 1]!];
      const alpha = Math.sqrt(1 - sigma ** 2);
      history.push(combine([sigma, x], [alpha, output]));
      const direction = adamsBashforth(history);
      const original = combine([1 / Math.max(alpha, 1e-8), x], [-sigma / Math.max(alpha, 1e-8), direction]);
      return { sample: combine([Math.sqrt(1 - next ** 2), original], [next, direction]), original };
    };
  },
});

/** In the noise level, for models with training timesteps, as ComfyUI's sample_ipndm. */
export const ipndm = stepSampler({
  schedule: eulerSchedule,
  addNoise: noiseByLevel,
  scaleInput: scaleByLevel,

  start(config, { sigmas }) {
    const history: Float32Array[] = [];
    return ({ index, x, output }) => {
      const [sigma, next] = [sigmas[index]!, sigmas[index + 1]!];
      const original = originalAtLevel(config.prediction_type, output, x, sigma);
      history.push(combine([1 / sigma, x], [-1 / sigma, original]));
      const sample = next === 0 ? original : combine([1, x], [next - sigma, adamsBashforth(history)]);
      return { sample, original };
    };
  },
});
