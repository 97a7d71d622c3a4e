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
  const rows = newWidth === width ? data : resampleRows(data, width, height, channels, newWidth);
  return {
    data: newHeight === height ? rows : resampleColumns(rows, newWidth * channels, height, newHeight),
    width: newWidth,
    height: newHeight,
  };
}

function resampleRows(data: Uint8Array, width: number, height: number, channels: number, newWidth: number): Uint8Array {
  const columns = taps(width, newWidth);
  const result = new Uint8ClampedArray(newWidth * height * channels);
  let at = 0;
  for (let y = 0; y < height; y++) {
    for (const { first, weights } of columns) {
      const start = (y * width + first) * channels;
      for (let channel = 0; channel < channels; channel++) result[at++] = weighted(data, start + channel, channels, weights);
    }
  }
  return new Uint8Array(result.buffer);
}

/** @param stride bytes of a row */
function resampleColumns(data: Uint8Array, stride: number, height: number, newHeight: number): Uint8Array {
  const result = new Uint8ClampedArray(stride * newHeight);
  let at = 0;
  for (const { first, weights } of taps(height, newHeight)) {
    for (let i = 0; i < stride; i++) result[at++] = weighted(data, first * stride + i, stride, weights);
  }
  return new Uint8Array(result.buffer);
}

function weighted(data: Uint8Array, start: number, stride: number, weights: Int32Array): number {
  let sum = unit / 2;
  for (let k = 0, at = start; k < weights.length; k++, at += stride) sum += weights[k]! * data[at]!;
  return Math.floor(sum / unit);
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
