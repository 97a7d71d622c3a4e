/**
 * What the DPM-Solvers (Lu et al., arXiv 2206.00927; "++": arXiv 2211.01095) share: exponential integrators in half log-SNR, whose Taylor
 * expansion is over the predicted x0 ("++") or the predicted epsilon.
 */
import type { DpmAlgorithm } from "../../shared/samplers.ts";
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { predictedNoise, predictedOriginal, type Signal } from "./parameterization.ts";
import { thresholdSample } from "./threshold.ts";

export type Term = readonly [coefficient: number, values: Float32Array];

/** Predicted x0, thresholded where the settings ask for it. */
export function originalOf(config: SchedulerConfig, output: Float32Array, x: Float32Array, now: Signal, batch: number): Float32Array {
  const original = predictedOriginal(config.prediction_type, output, x, now);
  return config.thresholding ? thresholdSample(original, batch, config) : original;
}

/** The epsilon that belongs to such an x0. */
export function noiseOf(config: SchedulerConfig, output: Float32Array, x: Float32Array, now: Signal, original: Float32Array): Float32Array {
  if (config.thresholding) return combine([1 / now.sigma, x], [-now.alpha / now.sigma, original]);
  return predictedNoise(config.prediction_type, output, x, now);
}

/** Coefficients of x, of the prediction and its first and second derivative in log-SNR, and of fresh noise. */
export interface Weights {
  x: number;
  d0: number;
  d1: number;
  d2: number;
  noise: number;
}

/** From signal s to signal t, whose half log-SNRs lie h apart. sde-dpmsolver has no third order: its d2 is never used. */
export const solverWeights = {
  "dpmsolver++": (s, t, h) => ({
    x: t.sigma / s.sigma,
    d0: -t.alpha * Math.expm1(-h),
    d1: t.alpha * (Math.expm1(-h) / h + 1),
    d2: -t.alpha * ((Math.expm1(-h) + h) / h ** 2 - 0.5),
    noise: 0,
  }),
  dpmsolver: (s, t, h) => ({
    x: t.alpha / s.alpha,
    d0: -t.sigma * Math.expm1(h),
    d1: -t.sigma * (Math.expm1(h) / h - 1),
    d2: -t.sigma * ((Math.expm1(h) - h) / h ** 2 - 0.5),
    noise: 0,
  }),
  "sde-dpmsolver++": (s, t, h) => ({
    x: (t.sigma / s.sigma) * Math.exp(-h),
    d0: -t.alpha * Math.expm1(-2 * h),
    d1: t.alpha * (Math.expm1(-2 * h) / (2 * h) + 1),
    d2: t.alpha * ((-Math.expm1(-2 * h) - 2 * h) / (2 * h) ** 2 - 0.5),
    noise: t.sigma * Math.sqrt(Math.max(-Math.expm1(-2 * h), 0)),
  }),
  "sde-dpmsolver": (s, t, h) => ({
    x: t.alpha / s.alpha,
    d0: -2 * t.sigma * Math.expm1(h),
    d1: -2 * t.sigma * (Math.expm1(h) / h - 1),
    d2: 0,
    noise: t.sigma * Math.sqrt(Math.max(Math.expm1(2 * h), 0)),
  }),
} as const satisfies Record<DpmAlgorithm, (s: Signal, t: Signal, h: number) => Weights>;
