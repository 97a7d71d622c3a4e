/** Heun's method (Karras et al., arXiv 2206.00364, algorithm 1); as diffusers' HeunDiscreteScheduler. */
import { combine } from "./combine.ts";
import { noiseByLevel, scaleByLevel } from "./forward.ts";
import { originalAtLevel } from "./parameterization.ts";
import { levelSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";
import { clampTo } from "./threshold.ts";

export const heun = stepSampler({
  order: 2,
  addNoise: noiseByLevel,
  scaleInput: scaleByLevel,

  /** Every level but the first is visited twice: at the end of one step and at the start of the next. */
  schedule(config, steps) {
    const { timesteps, levels, trained, initNoiseSigma } = levelSchedule(config, steps);
    const [first, ...rest] = levels;
    const [start, ...later] = timesteps;
    return {
      timesteps: [start!, ...later.flatMap(timestep => [timestep, timestep])],
      sigmas: Float32Array.from([first!, ...rest.flatMap(level => [level, level]), 0]),
      alphasCumprod: trained.alphasCumprod,
      initNoiseSigma,
    };
  },

  start(config, { sigmas }) {
    let first: { x: Float32Array; derivative: Float32Array; step: number } | null = null;
    return ({ index, x, output }) => {
      const sigma = sigmas[index]!;
      const predicted = originalAtLevel(config.prediction_type, output, x, sigma);
      const original = config.clip_sample ? clampTo(predicted, config.clip_sample_range) : predicted;
      const derivative = combine([1 / sigma, x], [-1 / sigma, original]);
      if (first === null) {
        first = { x, derivative, step: sigmas[index + 1]! - sigma };
        return { sample: combine([1, x], [first.step, derivative]), original };
      }
      const sample = combine([1, first.x], [first.step / 2, first.derivative], [first.step / 2, derivative]);
      first = null;
      return { sample, original };
    };
  },
});
