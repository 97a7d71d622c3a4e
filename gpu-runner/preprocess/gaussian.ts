/** Gaussian blur, row by row and column by column; beyond the edges the picture is mirrored at its outermost pixels. */
import type { RgbPixels } from "./picture.ts";

/**
 * @param radiusInSigmas where the kernel ends; OpenCV takes 3 for bytes and 4 for floats
 * @returns 3 values a pixel, not rounded
 */
export function gaussianBlur({ data, width, height }: RgbPixels, sigma: number, radiusInSigmas: number): Float32Array {
  const kernel = gaussianKernel(sigma, radiusInSigmas);
  const rows = new Float32Array(data.length);
  for (let y = 0; y < height; y++) rows.set(blurRow(data.subarray(3 * y * width, 3 * (y + 1) * width), kernel), 3 * y * width);
  return blurColumns(rows, 3 * width, height, kernel);
}

/** Weights from -radius to radius; they sum to 1. */
function gaussianKernel(sigma: number, radiusInSigmas: number): Float64Array {
  const radius = Math.floor(Math.round(2 * radiusInSigmas * sigma + 1) / 2);
  const weights = Float64Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-((i - radius) ** 2) / (2 * sigma ** 2)));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map(weight => weight / sum);
}

/** A row of pixels, 3 values each. */
function blurRow(row: Uint8Array, kernel: Float64Array): Float64Array {
  const radius = (kernel.length - 1) / 2;
  const count = row.length / 3;
  const padded = new Float64Array(row.length + 6 * radius);
  for (let i = 0; i < count + 2 * radius; i++) {
    const source = 3 * mirrored(i - radius, count);
    for (let channel = 0; channel < 3; channel++) padded[3 * i + channel] = row[source + channel]!;
  }
  const sums = new Float64Array(row.length);
  for (let k = 0; k < kernel.length; k++) {
    const weight = kernel[k]!;
    for (let i = 0; i < sums.length; i++) sums[i]! += weight * padded[i + 3 * k]!;
  }
  return sums;
}

function blurColumns(values: Float32Array, stride: number, height: number, kernel: Float64Array): Float32Array {
  const radius = (kernel.length - 1) / 2;
  const result = new Float32Array(values.length);
  const sums = new Float64Array(stride);
  for (let y = 0; y < height; y++) {
    sums.fill(0);
    for (let k = 0; k < kernel.length; k++) {
      const weight = kernel[k]!;
      const start = mirrored(y + k - radius, height) * stride;
      for (let i = 0; i < stride; i++) sums[i]! += weight * values[start + i]!;
    }
    result.set(sums, y * stride);
  }
  return result;
}

/** 2 1 | 0 1 2 … n-1 | n-2: the outermost pixel is not repeated. */
function mirrored(position: number, count: number): number {
  if (count === 1) return 0;
  const period = 2 * (count - 1);
  const wrapped = ((position % period) + period) % period;
  return wrapped < count ? wrapped : period - wrapped;
}
