/** Noise levels sigma / alpha of the training timesteps, and the fractional timesteps of noise levels between them. */
import { cumulativeAlphas } from "./betas.ts";
import type { SchedulerConfig } from "./config.ts";
import { interpolate } from "./numeric.ts";

export interface TrainedLevels {
  /** alpha-bar of every training timestep. */
  alphasCumprod: Float32Array;
  /** Noise level of every training timestep, rising. */
  sigmas: Float32Array;
  logSigmas: Float32Array;
}

export function trainedLevels(config: SchedulerConfig): TrainedLevels {
  const alphasCumprod = cumulativeAlphas(config);
  // Zero terminal SNR would be an infinite sigma; the smallest positive half-precision number stands in for alpha-bar.
  if (config.rescale_betas_zero_snr) alphasCumprod[alphasCumprod.length - 1] = 2 ** -24;
  const sigmas = alphasCumprod.map(levelOf);
  return { alphasCumprod, sigmas, logSigmas: sigmas.map(Math.log) };
}

/** The noise level at alpha-bar, rounded as diffusers' float32 tensors are. */
export function levelOf(alphaBar: number): number {
  return Math.sqrt(Math.fround(Math.fround(1 - alphaBar) / alphaBar));
}

/** The fractional training timestep of a noise level, by linear interpolation of the logarithm. */
export function timestepOf(sigma: number, { logSigmas }: TrainedLevels): number {
  const logSigma = Math.log(Math.max(sigma, 1e-10));
  const below = logSigmas.findLastIndex(level => logSigma >= level);
  const low = Math.min(Math.max(below, 0), logSigmas.length - 2);
  const weight = (logSigmas[low]! - logSigma) / Math.fround(logSigmas[low]! - logSigmas[low + 1]!);
  const clamped = Math.min(Math.max(weight, 0), 1);
  return (1 - clamped) * low + clamped * (low + 1);
}

/** The noise level at a fractional timestep as k-diffusion reads it: by linear interpolation of the logarithm. */
export function levelAt(timestep: number, { logSigmas }: TrainedLevels): number {
  return Math.exp(interpolate(timestep, logSigmas));
}
