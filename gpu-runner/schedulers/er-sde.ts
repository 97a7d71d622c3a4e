/** Extended reverse-time SDE solver of order 3 (Cui et al., arXiv 2309.06169), as ComfyUI's sample_er_sde. */
import { combine } from "./combine.ts";
import { noiseByLevel, scaleByLevel } from "./forward.ts";
import { originalAtLevel } from "./parameterization.ts";
import { eulerSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

/** The paper's noise scale function "ER-SDE 5". */
const scale = (sigma: number) => sigma * (Math.exp(sigma ** 0.3) + 10);
/** Points of the Riemann sums that stand for its integrals. */
const points = 200;

export const erSde = stepSampler({
  schedule: eulerSchedule,
  addNoise: noiseByLevel,
  scaleInput: scaleByLevel,

  start(config, { sigmas }, { noise, begin }) {
    let last: { denoised: Float32Array; slope: Float32Array | null } | null = null;
    return ({ index, x, output }) => {
      const [sigma, next] = [sigmas[index]!, sigmas[index + 1]!];
      const original = originalAtLevel(config.prediction_type, output, x, sigma);
      if (next === 0) return { sample: original, original };
      const ratio = scale(next) / scale(sigma);
      const step = next - sigma;
      const terms: [number, Float32Array][] = [
        [ratio, x],
        [1 - ratio, original],
      ];
      let slope: Float32Array | null = null;
      if (last) {
        const width = sigma - sigmas[index - 1]!;
        slope = combine([1 / width, original], [-1 / width, last.denoised]);
        terms.push([step + scale(next) * integral(next, sigma, () => 1), slope]);
      }
      if (slope && last?.slope && index - begin >= 2) {
        const width = (sigma - sigmas[index - 2]!) / 2;
        const curvature = combine([1 / width, slope], [-1 / width, last.slope]);
        terms.push([step ** 2 / 2 + scale(next) * integral(next, sigma, level => level - sigma), curvature]);
      }
      last = { denoised: original, slope };
      const fresh = Math.sqrt(Math.max(next ** 2 - (sigma * ratio) ** 2, 0));
      return { sample: combine(...terms, [fresh * config.s_noise, noise()]), original };
    };
  },
});

/** Sum over left ends for the integral of f / scale between two levels. */
function integral(from: number, to: number, f: (level: number) => number): number {
  const width = (to - from) / points;
  let sum = 0;
  for (let i = 0; i < points; i++) sum += (f(from + i * width) / scale(from + i * width)) * width;
  return sum;
}
