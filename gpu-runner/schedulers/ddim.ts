/** DDIM (Song et al., arXiv 2010.02502); as diffusers' DDIMScheduler. */
import { cumulativeAlphas } from "./betas.ts";
import { combine } from "./combine.ts";
import { predictedNoise, predictedOriginal } from "./parameterization.ts";
import type { Sampler } from "./sampler.ts";
import { ddimTimesteps } from "./schedule.ts";
import { clampTo, thresholdSample } from "./threshold.ts";

export const ddim: Sampler = {
  schedule(config, steps) {
    const alphasCumprod = cumulativeAlphas(config);
    const timesteps = ddimTimesteps(config, steps);
    if (timesteps[0]! >= alphasCumprod.length) {
      throw new RangeError(
        `steps_offset ${config.steps_offset}: the first of ${steps} timesteps is ${timesteps[0]}, past the model's last, ${alphasCumprod.length - 1}`,
      );
    }
    const sigmas = Float32Array.from([...timesteps.map(t => Math.sqrt(1 / alphasCumprod[t]! - 1)), 0]);
    return { timesteps, sigmas, alphasCumprod, initNoiseSigma: 1 };
  },

  async sample(config, { timesteps, alphasCumprod }, { model, latents, batch, noise, onStep, signal }) {
    const stride = Math.floor(config.num_train_timesteps / timesteps.length);
    const finalAlphaBar = config.set_alpha_to_one ? 1 : alphasCumprod[0]!;
    let x = latents;
    for (const [i, t] of timesteps.entries()) {
      signal?.throwIfAborted();
      const alphaBar = alphasCumprod[t]!;
      const nextAlphaBar = t - stride >= 0 ? alphasCumprod[t - stride]! : finalAlphaBar;
      const signalNow = { alpha: Math.sqrt(alphaBar), sigma: Math.sqrt(1 - alphaBar) };
      const output = await model(x, t);
      let original = predictedOriginal(config.prediction_type, output, x, signalNow);
      const epsilon = predictedNoise(config.prediction_type, output, x, signalNow);
      if (config.thresholding) original = thresholdSample(original, batch, config);
      else if (config.clip_sample) original = clampTo(original, config.clip_sample_range);
      // Equations 12 and 16: a share eta of the step's noise is drawn anew, the rest points along epsilon.
      const variance = ((1 - nextAlphaBar) / (1 - alphaBar)) * (1 - alphaBar / nextAlphaBar);
      const fresh = config.eta * Math.sqrt(variance);
      x = combine([Math.sqrt(nextAlphaBar), original], [Math.sqrt(Math.max(1 - nextAlphaBar - fresh ** 2, 0)), epsilon]);
      if (config.eta > 0) x = combine([1, x], [fresh, noise()]);
      await onStep?.({ step: i + 1, steps: timesteps.length, sample: x, original });
    }
    return x;
  },

  addNoise({ alphasCumprod }, original, noise, timestep) {
    const alphaBar = alphasCumprod[timestep]!;
    return combine([Math.sqrt(alphaBar), original], [Math.sqrt(1 - alphaBar), noise]);
  },
};
