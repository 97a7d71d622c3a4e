/**
 * DPM++ SDE (k-diffusion's sample_dpmpp_sde): a stochastic step of order 2 whose noise is a Brownian motion over the noise level; as diffusers'
 * DPMSolverSDEScheduler.
 */
import { brownianNoise } from "./brownian.ts";
import { combine } from "./combine.ts";
import { ancestralLevels, noiseByLevel, scaleTo } from "./forward.ts";
import { timestepOf } from "./noise-levels.ts";
import { originalAtLevel } from "./parameterization.ts";
import { levelSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

export const dpmSolverSde = stepSampler({
  order: 2,
  addNoise: noiseByLevel,
  scaleInput: ({ sigmas }, x, index) => scaleTo(index % 2 === 0 ? sigmas[index]! : Math.sqrt(sigmas[index - 1]! * sigmas[index]!), x),

  /** Calls at the level of a step and at its geometric middle, in turn. */
  schedule(config, steps) {
    const { timesteps, levels, trained, initNoiseSigma } = levelSchedule(config, steps);
    const middles = levels.slice(1).map((level, i) => timestepOf(Math.sqrt(levels[i]! * level), trained));
    return {
      timesteps: [timesteps[0]!, ...timesteps.slice(1).flatMap((timestep, i) => [middles[i]!, timestep])],
      sigmas: Float32Array.from([levels[0]!, ...levels.slice(1).flatMap(level => [level, level]), 0]),
      alphasCumprod: trained.alphasCumprod,
      initNoiseSigma,
    };
  },

  start(config, { sigmas }, { noise, intervalNoise = brownianNoise(noise) }) {
    let start: Float32Array | null = null;
    return ({ index, x, output }) => {
      const first = start === null ? index : index - 1;
      const [sigma, next] = [sigmas[first]!, sigmas[first + 1]!];
      const middle = Math.sqrt(sigma * next);
      const original = originalAtLevel(config.prediction_type, output, x, start === null ? sigma : middle);
      if (next === 0) return { sample: original, original };
      const to = start === null ? middle : next;
      const { down, up } = ancestralLevels(sigma, to);
      const sample = combine([down / sigma, start ?? x], [1 - down / sigma, original], [up * config.s_noise, intervalNoise(sigma, to)]);
      start = start === null ? x : null;
      return { sample, original };
    };
  },
});
