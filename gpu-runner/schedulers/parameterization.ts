/**
 * What a model's raw output means. Under x = alpha * x0 + sigma * epsilon (alpha^2 + sigma^2 = 1) a model may predict
 * epsilon, x0 itself ("sample"), or v = alpha * epsilon - sigma * x0 (Salimans and Ho, arXiv 2202.00512).
 */

import { combine } from "./combine.ts";
import type { PredictionType } from "./config.ts";

export interface Signal {
  alpha: number;
  sigma: number;
}

/** alpha and sigma (alpha^2 + sigma^2 = 1) at the noise level sigma / alpha. */
export function signalAt(level: number): Signal {
  const alpha = 1 / Math.sqrt(level ** 2 + 1);
  return { alpha, sigma: level * alpha };
}

/** alpha and sigma where alpha^2 is alpha-bar. */
export function signalOf(alphaBar: number): Signal {
  return { alpha: Math.sqrt(alphaBar), sigma: Math.sqrt(1 - alphaBar) };
}

/**
 * Predicted x0.
 * @throws RangeError for epsilon at pure noise, where x0 cannot be told from it
 */
export function predictedOriginal(
  type: PredictionType,
  output: Float32Array,
  sample: Float32Array,
  { alpha, sigma }: Signal,
): Float32Array {
  switch (type) {
    case "epsilon":
      if (alpha === 0)
        throw new RangeError(
          "a model that predicts epsilon cannot start from zero signal (rescale_betas_zero_snr): use a v-prediction model",
        );
      return combine([1 / alpha, sample], [-sigma / alpha, output]);
    case "v_prediction":
      return combine([alpha, sample], [-sigma, output]);
    case "sample":
      return output;
  }
}

/** Predicted x0 for x = x0 + level * epsilon, the form in which Euler's samplers hold their latents. */
export function originalAtLevel(type: PredictionType, output: Float32Array, x: Float32Array, level: number): Float32Array {
  switch (type) {
    case "epsilon":
      return combine([1, x], [-level, output]);
    case "v_prediction":
      return combine([1 / (level ** 2 + 1), x], [-level / Math.sqrt(level ** 2 + 1), output]);
    case "sample":
      return output;
  }
}

/** Predicted epsilon. */
export function predictedNoise(type: PredictionType, output: Float32Array, sample: Float32Array, { alpha, sigma }: Signal): Float32Array {
  switch (type) {
    case "epsilon":
      return output;
    case "v_prediction":
      return combine([alpha, output], [sigma, sample]);
    case "sample":
      return combine([1 / sigma, sample], [-alpha / sigma, output]);
  }
}

/** The target of a v-prediction model for `original` and `noise`. */
export function velocity(original: Float32Array, noise: Float32Array, { alpha, sigma }: Signal): Float32Array {
  return combine([alpha, noise], [-sigma, original]);
}
