/** Heun++ 2: the derivative of a step is weighed with those foreseen at the next two levels; as ComfyUI's sample_heunpp2. */
import { combine } from "./combine.ts";
import { churn } from "./euler.ts";
import { type Denoise, levelSampler } from "./level-sampler.ts";

export const heunpp2 = levelSampler({
  start(config, { timesteps, sigmas }, { denoise, noise, begin }) {
    return async (x, index) => {
      const sigma = sigmas[index]!;
      const raised = sigma * (1 + churn(config, sigma, timesteps.length));
      const risen = raised > sigma ? combine([1, x], [config.s_noise * Math.sqrt(raised ** 2 - sigma ** 2), noise()]) : x;
      const { guided: original } = await denoise(risen, raised, index);
      const derivative = derivativeOf(risen, raised, original);
      const left = timesteps.length - index;
      const ahead = await lookAhead(denoise, sigmas, index, risen, derivative, sigmas[index + 1]! - raised, Math.min(left - 1, 2));
      // Levels ahead count by their share of the run's first level; with none ahead this is Euler's step.
      const whole = (ahead.length + 1) * sigmas[begin]!;
      const shares = ahead.map((_, i) => sigmas[index + 1 + i]! / whole);
      const step = sigmas[index + 1]! - raised;
      const own = 1 - shares.reduce((sum, share) => sum + share, 0);
      const sample = combine([1, risen], [step * own, derivative], ...ahead.map((value, i) => [step * shares[i]!, value] as const));
      return { sample, original };
    };
  },
});

/** Derivatives at the next `count` levels, each reached by an Euler step from the one before. */
async function lookAhead(
  denoise: Denoise,
  sigmas: Float32Array,
  index: number,
  x: Float32Array,
  derivative: Float32Array,
  firstStep: number,
  count: number,
): Promise<Float32Array[]> {
  const derivatives: Float32Array[] = [];
  let [point, slope] = [x, derivative];
  for (let i = 1; i <= count; i++) {
    const step = i === 1 ? firstStep : sigmas[index + i]! - sigmas[index + i - 1]!;
    point = combine([1, point], [step, slope]);
    slope = derivativeOf(point, sigmas[index + i]!, (await denoise(point, sigmas[index + i]!, index)).guided);
    derivatives.push(slope);
  }
  return derivatives;
}

function derivativeOf(x: Float32Array, sigma: number, denoised: Float32Array): Float32Array {
  return combine([1 / sigma, x], [-1 / sigma, denoised]);
}
