import { expect, test } from "vitest";
import { noiseBatch } from "../../../gpu-runner/train/loss.ts";

const latents = Float32Array.of(1, 2, 3, 4);
const noise = Float32Array.of(0.5, -1, 0.25, 2);
const shape = [2, 1, 2];
const item = { latents, noise, alpha: 0.64, mask: null, weight: 0.5 };

test("noise is mixed in by the square roots of alpha and 1 - alpha, and is the target", () => {
  const { sample, target } = noiseBatch([item], { predictsVelocity: false, minSnrGamma: null, shape });
  expect(sample.shape).toEqual([1, 2, 1, 2]);
  expect(sample.data).toEqual(Float32Array.of(0.8 * 1 + 0.6 * 0.5, 0.8 * 2 - 0.6, 0.8 * 3 + 0.6 * 0.25, 0.8 * 4 + 0.6 * 2));
  expect(target.data).toEqual(noise);
});

test("a velocity is sqrt(a) n - sqrt(1 - a) x", () => {
  const { target } = noiseBatch([item], { predictsVelocity: true, minSnrGamma: null, shape });
  expect(target.data).toEqual(Float32Array.of(0.8 * 0.5 - 0.6, -0.8 - 0.6 * 2, 0.8 * 0.25 - 0.6 * 3, 0.8 * 2 - 0.6 * 4));
});

test("loss weights are the item's, the mask's and min-SNR's", () => {
  // snr = 0.64 / 0.36 = 16 / 9.
  const masked = { ...item, mask: Float32Array.of(1, 0.25) };
  const weights = (predictsVelocity: boolean, minSnrGamma: number | null): number[] =>
    Array.from(noiseBatch([masked], { predictsVelocity, minSnrGamma, shape }).lossWeights.data);
  expect(weights(false, null)).toEqual([0.5, 0.125]);
  expect(weights(false, 5)).toEqual([0.5, 0.125]);
  expect(weights(false, 1)[0]).toBeCloseTo((0.5 * 9) / 16, 6);
  expect(weights(true, 1)[0]).toBeCloseTo((0.5 * 9) / 25, 6);
  expect(weights(true, 5)[1]).toBeCloseTo((0.125 * 16) / 25, 6);
});

test("at zero terminal SNR an epsilon's weight stays 1 and a velocity's is 0", () => {
  const last = { ...item, alpha: 0 };
  const weight = (predictsVelocity: boolean): number =>
    noiseBatch([last], { predictsVelocity, minSnrGamma: 5, shape }).lossWeights.data[0]!;
  expect([weight(false), weight(true)]).toEqual([0.5, 0]);
});
