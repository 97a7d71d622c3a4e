/** What a denoiser learns: noisy latents, their target, and how much each squared error counts. */
import type { TensorF32 } from "../components.ts";

export interface LossItem {
  /** Clean latents and unit noise, [C, h, w]. */
  latents: Float32Array;
  noise: Float32Array;
  /** Cumulative alpha of the item's timestep. */
  alpha: number;
  /** Of the errors, [h, w]; null: all alike. */
  mask: Float32Array | null;
  /** Of the item: its prior weight over the count of items that it stands among. */
  weight: number;
}

export interface LossOptions {
  predictsVelocity: boolean;
  /** Of min-SNR; null: every timestep weighs the same. */
  minSnrGamma: number | null;
  /** [C, h, w]. */
  shape: readonly number[];
}

/** sample = sqrt(a) x + sqrt(1 - a) n; target n, or the velocity sqrt(a) n - sqrt(1 - a) x; loss weights [B, 1, h, w]. */
export function noiseBatch(
  items: readonly LossItem[],
  { predictsVelocity, minSnrGamma, shape }: LossOptions,
): { sample: TensorF32; target: TensorF32; lossWeights: TensorF32 } {
  const size = shape.reduce((a, b) => a * b, 1);
  const [, height, width] = shape as [number, number, number];
  const pixels = height * width;
  const sample = new Float32Array(items.length * size);
  const target = new Float32Array(items.length * size);
  const weights = new Float32Array(items.length * pixels);
  items.forEach(({ latents, noise, alpha, mask, weight }, item) => {
    const [signal, level] = [Math.sqrt(alpha), Math.sqrt(1 - alpha)];
    for (let i = 0; i < size; i++) {
      const [x, n] = [latents[i]!, noise[i]!];
      sample[item * size + i] = signal * x + level * n;
      target[item * size + i] = predictsVelocity ? signal * n - level * x : n;
    }
    const factor = weight * snrWeight(minSnrGamma, alpha, predictsVelocity);
    for (let i = 0; i < pixels; i++) weights[item * pixels + i] = factor * (mask?.[i] ?? 1);
  });
  const batch = [items.length, ...shape];
  return {
    sample: { data: sample, shape: batch },
    target: { data: target, shape: batch },
    lossWeights: { data: weights, shape: [items.length, 1, height, width] },
  };
}

/** min(snr, gamma) / snr of an epsilon prediction, / (snr + 1) of a v prediction (Hang et al. 2023); 1 without gamma. */
export function snrWeight(gamma: number | null, alpha: number, predictsVelocity: boolean): number {
  if (gamma === null) return 1;
  const snr = alpha / (1 - alpha);
  if (predictsVelocity) return Math.min(snr, gamma) / (snr + 1);
  return snr <= gamma ? 1 : gamma / snr;
}
