/**
 * RES: a refined exponential solver of order 2, multistep (Zhang et al., arXiv 2308.02157), as ComfyUI's sample_res_multistep, its ancestral form
 * (`eta`) and its form along the unconditional prediction (CFG++, arXiv 2406.08070).
 */
import { combine } from "./combine.ts";
import { ancestralLevels, noiseByLevel, scaleByLevel } from "./forward.ts";
import { originalAtLevel } from "./parameterization.ts";
import { eulerSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

export const resMultistep = refinedExponential(false);
export const resMultistepCfgPp = refinedExponential(true);

function refinedExponential(alongUnconditional: boolean) {
  return stepSampler({
    schedule: eulerSchedule,
    addNoise: noiseByLevel,
    scaleInput: scaleByLevel,

    start(config, { sigmas }, { noise }) {
      let last: { denoised: Float32Array; down: number } | null = null;
      return ({ index, x, output, unconditional }) => {
        const [sigma, next] = [sigmas[index]!, sigmas[index + 1]!];
        const original = originalAtLevel(config.prediction_type, output, x, sigma);
        const along = alongUnconditional ? originalAtLevel(config.prediction_type, unconditional, x, sigma) : original;
        const { down, up } = ancestralLevels(sigma, next, config.eta);
        // CFG++ moves the latents by the guidance, then steps along the unconditional prediction.
        const guided = combine([1, x], [1, original], [-1, along]);
        const ended =
          last === null || down === 0
            ? combine([1, original], [down / sigma, x], [-down / sigma, along])
            : secondOrder(guided, along, last.denoised, { sigma, down, before: sigmas[index - 1]!, reached: last.down });
        last = { denoised: along, down };
        return { sample: up > 0 ? combine([1, ended], [up * config.s_noise, noise()]) : ended, original };
      };
    },
  });
}

interface Levels {
  sigma: number;
  down: number;
  /** Where the step before began, and where it ended before noise was added. */
  before: number;
  reached: number;
}

function secondOrder(x: Float32Array, denoised: Float32Array, old: Float32Array, { sigma, down, before, reached }: Levels): Float32Array {
  const h = Math.log(sigma / down);
  const c2 = Math.log(reached / before) / h;
  const phi1 = Math.expm1(-h) / -h;
  const phi2 = (phi1 - 1) / -h;
  return combine([Math.exp(-h), x], [h * (phi1 - phi2 / c2), denoised], [(h * phi2) / c2, old]);
}
