/** DDPM (Ho et al., arXiv 2006.11239); as diffusers' DDPMScheduler. */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { noiseByAlphaBar } from "./forward.ts";
import { predictedOriginal, signalOf } from "./parameterization.ts";
import { alphaBarSchedule, ddimTimesteps } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";
import { limitOriginal } from "./threshold.ts";

export const ddpm = stepSampler({
  schedule: (config, steps) => alphaBarSchedule(config, ddimTimesteps(config, steps)),
  addNoise: noiseByAlphaBar,

  start(config, { timesteps, alphasCumprod }, { batch, noise }) {
    return ({ index, timestep, x, output }) => {
      const alphaBar = alphasCumprod[timestep]!;
      const next = timesteps[index + 1];
      const nextAlphaBar = next === undefined ? 1 : alphasCumprod[next]!;
      const original = limitOriginal(predictedOriginal(config.prediction_type, output, x, signalOf(alphaBar)), batch, config);
      // Mean of the posterior q(x_next | x, x0), equation 7.
      const alpha = alphaBar / nextAlphaBar;
      const mean = [
        [(Math.sqrt(nextAlphaBar) * (1 - alpha)) / (1 - alphaBar), original],
        [(Math.sqrt(alpha) * (1 - nextAlphaBar)) / (1 - alphaBar), x],
      ] as const;
      const fresh = timestep > 0 ? ([[deviation(config, alphaBar, nextAlphaBar), noise()]] as const) : [];
      return { sample: combine(...mean, ...fresh), original };
    };
  },
});

/** The posterior's own variance or that of the forward step; the `_log` variants differ only in how they were trained. */
function deviation({ variance_type }: SchedulerConfig, alphaBar: number, nextAlphaBar: number): number {
  const beta = 1 - alphaBar / nextAlphaBar;
  return Math.sqrt(variance_type.startsWith("fixed_large") ? beta : Math.max(((1 - nextAlphaBar) / (1 - alphaBar)) * beta, 1e-20));
}
