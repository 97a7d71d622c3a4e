/** Pictures of bytes at other sizes, to the byte as Pillow resamples them: diffusers and A1111 read, crop and enlarge pictures with it. */

export interface Bytes {
  /** Row by row, channels together. */
  data: Uint8Array;
  width: number;
  height: number;
}

/** Lobes of Lanczos' kernel. */
const lobes = 3;
/** Weights are whole multiples of this, and sums are exact. */
const unit = 2 ** 22;

/** With Lanczos' kernel, stretched where the picture becomes smaller: rows first, rounded to bytes, then columns. */
export function resample({ data, width, height }: Bytes, channels: number, newWidth: number, newHeight: number): Bytes {
  const rows =
    newWidth === width
      ? data
      : alongLines(data, { lines: height, stride: channels, lineStride: width * channels }, width, newWidth, channels);
  if (newHeight === height) return { data: rows, width: newWidth, height };
  const columns = { lines: newWidth, stride: newWidth * channels, lineStride: channels };
  return { data: alongLines(rows, columns, height, newHeight, channels), width: newWidth, height: newHeight };
}

interface Layout {
  lines: number;
  /** Between neighbours of a line. */
  stride: number;
  /** Between lines. */
  lineStride: number;
}

function alongLines(data: Uint8Array, { lines, stride, lineStride }: Layout, from: number, to: number, channels: number): Uint8Array {
  const isRow = stride === channels;
  const result = new Uint8ClampedArray(lines * to * channels);
  const outLineStride = isRow ? to * channels : lineStride;
  for (const [i, { first, weights }] of taps(from, to).entries()) {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < channels; channel++) {
        const start = line * lineStride + first * stride + channel;
        let sum = unit / 2;
        for (let k = 0; k < weights.length; k++) sum += weights[k]! * data[start + k * stride]!;
        result[line * outLineStride + i * stride + channel] = Math.floor(sum / unit);
      }
    }
  }
  return new Uint8Array(result.buffer);
}

/** For each sample of the result: the samples that it is made of, and their weights in `unit`s. */
function taps(from: number, to: number): { first: number; weights: Int32Array }[] {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - lobes * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(centre + lobes * stretch + 0.5), from);
    const weights = Array.from({ length: end - first }, (_, k) => lanczos((first + k - centre + 0.5) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: Int32Array.from(weights, weight => Math.round((weight / sum) * unit)) };
  });
}

function lanczos(x: number): number {
  return Math.abs(x) < lobes ? sinc(x) * sinc(x / lobes) : 0;
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}
