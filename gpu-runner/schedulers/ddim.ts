/** DDIM (Song et al., arXiv 2010.02502); as diffusers' DDIMScheduler. */
import { combine } from "./combine.ts";
import { noiseByAlphaBar } from "./forward.ts";
import { predictedNoise, predictedOriginal, signalOf } from "./parameterization.ts";
import { alphaBarSchedule, ddimTimesteps } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";
import { limitOriginal } from "./threshold.ts";

export const ddim = stepSampler({
  schedule: (config, steps) => alphaBarSchedule(config, ddimTimesteps(config, steps)),
  addNoise: noiseByAlphaBar,

  start(config, { timesteps, alphasCumprod }, { batch, noise }) {
    const stride = Math.floor(config.num_train_timesteps / timesteps.length);
    const finalAlphaBar = config.set_alpha_to_one ? 1 : alphasCumprod[0]!;
    return ({ timestep: t, x, output }) => {
      const alphaBar = alphasCumprod[t]!;
      const nextAlphaBar = t - stride >= 0 ? alphasCumprod[t - stride]! : finalAlphaBar;
      const now = signalOf(alphaBar);
      const original = limitOriginal(predictedOriginal(config.prediction_type, output, x, now), batch, config);
      const epsilon = config.use_clipped_model_output
        ? combine([1 / now.sigma, x], [-now.alpha / now.sigma, original])
        : predictedNoise(config.prediction_type, output, x, now);
      // Equations 12 and 16: a share eta of the step's noise is drawn anew, the rest points along epsilon.
      const variance = ((1 - nextAlphaBar) / (1 - alphaBar)) * (1 - alphaBar / nextAlphaBar);
      const fresh = config.eta * Math.sqrt(variance);
      const sample = combine([Math.sqrt(nextAlphaBar), original], [Math.sqrt(Math.max(1 - nextAlphaBar - fresh ** 2, 0)), epsilon]);
      return { sample: config.eta > 0 ? combine([1, sample], [fresh, noise()]) : sample, original };
    };
  },
});
