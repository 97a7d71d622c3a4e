/** Trajectory consistency sampling (Zheng et al., arXiv 2402.19159): `eta` is their gamma; as diffusers' TCDScheduler. */
import { combine } from "./combine.ts";
import { noiseByAlphaBar } from "./forward.ts";
import { consistencySchedule } from "./lcm.ts";
import { predictedNoise, predictedOriginal, signalOf } from "./parameterization.ts";
import { stepSampler } from "./step-sampler.ts";

export const tcd = stepSampler({
  schedule: consistencySchedule,
  addNoise: noiseByAlphaBar,

  start(config, { timesteps, alphasCumprod }, { noise }) {
    return ({ index, timestep, x, output }) => {
      const now = signalOf(alphasCumprod[timestep]!);
      const original = predictedOriginal(config.prediction_type, output, x, now);
      const epsilon = predictedNoise(config.prediction_type, output, x, now);
      const next = timesteps[index + 1];
      // Down to an earlier time than the next, then diffused up to it.
      const below = alphasCumprod[Math.floor(Math.fround(Math.fround(1 - config.eta) * (next ?? 0)))]!;
      const { alpha, sigma } = signalOf(below);
      const lowered = combine([alpha, original], [sigma, epsilon]);
      if (config.eta === 0 || next === undefined) return { sample: lowered, original };
      const ratio = alphasCumprod[next]! / below;
      return { sample: combine([Math.sqrt(ratio), lowered], [Math.sqrt(1 - ratio), noise()]), original };
    };
  },
});
