/** Multistep consistency sampling (Luo et al., arXiv 2310.04378); as diffusers' LCMScheduler. */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { noiseByAlphaBar } from "./forward.ts";
import { predictedOriginal, signalOf } from "./parameterization.ts";
import { alphaBarSchedule, type Schedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";
import { limitOriginal } from "./threshold.ts";

/** Timesteps among the `original_inference_steps` for which the model was distilled. */
export function consistencySchedule(config: SchedulerConfig, steps: number): Schedule {
  const distilled = config.original_inference_steps;
  const most = Math.min(distilled, config.num_train_timesteps);
  if (!Number.isInteger(steps) || steps < 1 || steps > most) {
    throw new RangeError(`steps: expected an integer of 1 to ${most} (original_inference_steps), got ${steps}`);
  }
  const stride = Math.floor(config.num_train_timesteps / distilled);
  const indices = Array.from({ length: steps }, (_, i) => Math.floor(i * (distilled / steps)));
  return alphaBarSchedule(
    config,
    indices.map(index => (distilled - index) * stride - 1),
  );
}

export const lcm = stepSampler({
  schedule: consistencySchedule,
  addNoise: noiseByAlphaBar,

  start(config, { timesteps, alphasCumprod }, { batch, noise }) {
    return ({ index, timestep, x, output }) => {
      const now = signalOf(alphasCumprod[timestep]!);
      const original = limitOriginal(predictedOriginal(config.prediction_type, output, x, now), batch, config);
      // Boundary condition: the picture itself at timestep zero (Song et al., arXiv 2303.01469, appendix C), sigma_data = 1/2.
      const scaled = timestep * config.timestep_scaling;
      const denoised = combine([scaled / Math.sqrt(scaled ** 2 + 0.25), original], [0.25 / (scaled ** 2 + 0.25), x]);
      const next = timesteps[index + 1];
      if (next === undefined) return { sample: denoised, original: denoised };
      const { alpha, sigma } = signalOf(alphasCumprod[next]!);
      return { sample: combine([alpha, denoised], [sigma, noise()]), original: denoised };
    };
  },
});
