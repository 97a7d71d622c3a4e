/** Forward diffusion to a position of a schedule, and how latents are scaled for the model there. */
import { combine } from "./combine.ts";
import { signalAt, signalOf } from "./parameterization.ts";
import type { Schedule } from "./schedule.ts";

/** x = alpha x0 + sigma epsilon at a whole timestep. */
export function noiseByAlphaBar(schedule: Schedule, original: Float32Array, noise: Float32Array, position: number): Float32Array {
  if (position === schedule.timesteps.length) return original;
  const { alpha, sigma } = signalOf(schedule.alphasCumprod[schedule.timesteps[position]!]!);
  return combine([alpha, original], [sigma, noise]);
}

/** x = alpha x0 + sigma epsilon, where sigma / alpha is the schedule's noise level. */
export function noiseBySignal({ sigmas }: Schedule, original: Float32Array, noise: Float32Array, position: number): Float32Array {
  const { alpha, sigma } = signalAt(sigmas[position]!);
  return combine([alpha, original], [sigma, noise]);
}

/** x = x0 + level * epsilon. */
export function noiseByLevel({ sigmas }: Schedule, original: Float32Array, noise: Float32Array, position: number): Float32Array {
  return combine([1, original], [sigmas[position]!, noise]);
}

/** Latents x0 + level * epsilon as the model wants them: with unit variance. */
export function scaleByLevel({ sigmas }: Schedule, x: Float32Array, position: number): Float32Array {
  return scaleTo(sigmas[position]!, x);
}

export function scaleTo(level: number, x: Float32Array): Float32Array {
  return combine([signalAt(level).alpha, x]);
}

/** Step down past the next level, then add the noise that lifts the latents to it (k-diffusion's get_ancestral_step). */
export function ancestralLevels(sigma: number, next: number, eta = 1): { down: number; up: number } {
  const up = Math.min(next, eta * Math.sqrt((next ** 2 * (sigma ** 2 - next ** 2)) / sigma ** 2));
  return { down: Math.sqrt(next ** 2 - up ** 2), up };
}
