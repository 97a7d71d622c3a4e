/** Bicubic resizing as torch's `interpolate(mode="bicubic")` does it: a = -0.75, pixel centres at halves, edges repeated, no antialiasing. */
import type { TensorF32 } from "../components.ts";

const a = -0.75;

/** [n, h, w] to [n, height, width]. */
export function resizeBicubic({ data, shape }: TensorF32, [height, width]: readonly [number, number]): TensorF32 {
  const [count, h, w] = shape as [number, number, number];
  const [rows, columns] = [taps(h, height), taps(w, width)];
  const out = new Float32Array(count * height * width);
  for (let n = 0; n < count; n++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        let sum = 0;
        for (const { at: row, weight: vertical } of rows[y]!)
          for (const { at: column, weight } of columns[x]!) sum += vertical * weight * data[(n * h + row) * w + column]!;
        out[(n * height + y) * width + x] = sum;
      }
  return { data: out, shape: [count, height, width] };
}

/** The four source pixels of each target pixel along one axis. */
function taps(from: number, to: number): { at: number; weight: number }[][] {
  return Array.from({ length: to }, (_, i) => {
    const position = ((i + 0.5) * from) / to - 0.5;
    const first = Math.floor(position);
    return [-1, 0, 1, 2].map(offset => ({
      at: Math.min(Math.max(first + offset, 0), from - 1),
      weight: cubic(Math.abs(position - first - offset)),
    }));
  });
}

/** Keys' cubic convolution kernel (1981). */
function cubic(x: number): number {
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}
