/** Gaussian blur, row by row and column by column; beyond the edges the picture is mirrored at its outermost pixels. */
import type { RgbPixels } from "./picture.ts";

/**
 * @param radiusInSigmas where the kernel ends; OpenCV takes 3 for bytes and 4 for floats
 * @returns 3 values a pixel, not rounded
 */
export function gaussianBlur({ data, width, height }: RgbPixels, sigma: number, radiusInSigmas: number): Float32Array {
  const kernel = gaussianKernel(sigma, radiusInSigmas);
  const rows = convolve(Float32Array.from(data), kernel, { count: width, step: 3 }, { count: height, step: 3 * width });
  return convolve(rows, kernel, { count: height, step: 3 * width }, { count: width, step: 3 });
}

/** Weights from -radius to radius; they sum to 1. */
function gaussianKernel(sigma: number, radiusInSigmas: number): Float64Array {
  const radius = Math.floor(Math.round(2 * radiusInSigmas * sigma + 1) / 2);
  const weights = Float64Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-((i - radius) ** 2) / (2 * sigma ** 2)));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map(weight => weight / sum);
}

interface Axis {
  count: number;
  /** Values between neighbours along the axis. */
  step: number;
}

function convolve(values: Float32Array, kernel: Float64Array, along: Axis, across: Axis): Float32Array {
  const result = new Float32Array(values.length);
  const radius = (kernel.length - 1) / 2;
  const sources = Array.from({ length: along.count + 2 * radius }, (_, i) => mirrored(i - radius, along.count) * along.step);
  for (let line = 0; line < across.count; line++) {
    for (let channel = 0; channel < 3; channel++) {
      const start = line * across.step + channel;
      for (let i = 0; i < along.count; i++) {
        let sum = 0;
        for (let k = 0; k < kernel.length; k++) sum += kernel[k]! * values[start + sources[i + k]!]!;
        result[start + i * along.step] = sum;
      }
    }
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
