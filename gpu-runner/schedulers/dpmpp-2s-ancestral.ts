/**
 * DPM-Solver++(2S) with ancestral noise, as k-diffusion's sample_dpmpp_2s_ancestral; and the same along the unconditional prediction, with the
 * guidance added to the latents (CFG++, Chung et al., arXiv 2406.08070), as ComfyUI's sample_dpmpp_2s_ancestral_cfg_pp.
 */
import { combine } from "./combine.ts";
import { ancestralLevels } from "./forward.ts";
import { type Denoised, levelSampler } from "./level-sampler.ts";

export const dpmpp2sAncestral = ancestral2s(({ guided }) => guided);
export const dpmpp2sAncestralCfgPp = ancestral2s(({ unconditional }) => unconditional);

function ancestral2s(direction: (denoised: Denoised) => Float32Array) {
  return levelSampler({
    start(config, { sigmas }, { denoise, noise }) {
      return async (x, index) => {
        const [sigma, next] = [sigmas[index]!, sigmas[index + 1]!];
        const { down, up } = ancestralLevels(sigma, next, config.eta);
        const denoised = await denoise(x, sigma, index);
        const towards = direction(denoised);
        const ended =
          down === 0 ? towards : await secondOrder(x, sigma, down, towards, async (u, level) => direction(await denoise(u, level, index)));
        const guidance =
          towards === denoised.guided
            ? []
            : ([
                [1, denoised.guided],
                [-1, towards],
              ] as const);
        const fresh = up > 0 ? ([[up * config.s_noise, noise()]] as const) : [];
        return { sample: combine([1, ended], ...guidance, ...fresh), original: denoised.guided };
      };
    },
  });
}

/** Half the step in log sigma, then the whole step along what is seen there. */
async function secondOrder(
  x: Float32Array,
  sigma: number,
  next: number,
  denoised: Float32Array,
  denoise: (x: Float32Array, sigma: number) => Promise<Float32Array>,
): Promise<Float32Array> {
  const middle = Math.sqrt(sigma * next);
  const halfway = combine([middle / sigma, x], [1 - middle / sigma, denoised]);
  return combine([next / sigma, x], [1 - next / sigma, await denoise(halfway, middle)]);
}
