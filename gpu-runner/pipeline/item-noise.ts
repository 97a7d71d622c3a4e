/** The noise of one picture: from its own seed, whatever else is in its batch. */
import type { PictureRequest } from "../../shared/picture.ts";
import { noiseSource } from "../noise/noise-source.ts";
import type { PassItem } from "./pass.ts";

/**
 * Each pass of a run starts its draws anew, since its latents may have another size.
 * @param shape of the latents, [1, C, h, w]
 */
export function itemNoise(
  { seed, noise_source, variation }: Pick<PictureRequest, "seed" | "noise_source" | "variation">,
  shape: readonly [number, number, number, number],
): PassItem["draw"] {
  const generator = noiseSource(noise_source, seed);
  const count = shape[1] * shape[2] * shape[3];
  return purpose => {
    const noise = generator(count);
    if (purpose !== "start" || variation === null || variation.strength === 0) return noise;
    const other = noiseSource(noise_source, variation.seed)(count);
    return between(noise, other, variation.strength, shape);
  };
}

/**
 * Spherical interpolation as A1111's "variation seed": along each column of latents by itself, so that its pictures come back; linear where the
 * two noises are almost parallel.
 */
function between(a: Float32Array, b: Float32Array, share: number, [, channels, height, width]: readonly [number, number, number, number]) {
  const columns = Array.from({ length: channels * width }, (_, i) => {
    const start = Math.floor(i / width) * height * width + (i % width);
    const values = (noise: Float32Array) => Array.from({ length: height }, (_, y) => noise[start + y * width]!);
    return { start, cosine: cosine(values(a), values(b)) };
  });
  const isParallel = columns.reduce((sum, column) => sum + column.cosine, 0) / columns.length > 0.9995;
  const result = new Float32Array(a.length);
  for (const { start, cosine } of columns) {
    const angle = Math.acos(cosine);
    const [weightA, weightB] = isParallel
      ? [1 - share, share]
      : [Math.sin((1 - share) * angle) / Math.sin(angle), Math.sin(share * angle) / Math.sin(angle)];
    for (let y = 0; y < height; y++) {
      const at = start + y * width;
      result[at] = weightA * a[at]! + weightB * b[at]!;
    }
  }
  return result;
}

function cosine(a: readonly number[], b: readonly number[]): number {
  const dot = (x: readonly number[], y: readonly number[]) => x.reduce((sum, value, i) => sum + value * y[i]!, 0);
  // Rounding must not leave the cosine's range.
  return Math.min(Math.max(dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)), -1), 1);
}
