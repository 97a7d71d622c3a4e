/** DDIM towards noise (deterministic encoding, Song et al., arXiv 2010.02502, section 4.3); as diffusers' DDIMInverseScheduler. */
import { combine } from "./combine.ts";
import { noiseByAlphaBar } from "./forward.ts";
import { predictedNoise, predictedOriginal, signalOf } from "./parameterization.ts";
import { alphaBarSchedule, ddimTimesteps } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";
import { clampTo } from "./threshold.ts";

export const ddimInverse = stepSampler({
  schedule: (config, steps) => alphaBarSchedule(config, ddimTimesteps(config, steps).reverse()),
  addNoise: noiseByAlphaBar,

  start(config, { timesteps, alphasCumprod }) {
    const stride = Math.floor(config.num_train_timesteps / timesteps.length);
    const initialAlphaBar = config.set_alpha_to_one ? 1 : alphasCumprod[0]!;
    return ({ timestep, x, output }) => {
      const earlier = Math.min(timestep - stride, config.num_train_timesteps - 1);
      const now = signalOf(earlier >= 0 ? alphasCumprod[earlier]! : initialAlphaBar);
      const predicted = predictedOriginal(config.prediction_type, output, x, now);
      const original = config.clip_sample ? clampTo(predicted, config.clip_sample_range) : predicted;
      const epsilon = predictedNoise(config.prediction_type, output, x, now);
      const next = signalOf(alphasCumprod[timestep]!);
      return { sample: combine([next.alpha, original], [next.sigma, epsilon]), original };
    };
  },
});
