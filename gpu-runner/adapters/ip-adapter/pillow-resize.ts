/** Pillow's bicubic resampling of 8-bit pictures (libImaging/Resample.c): antialiased, in fixed point, rounded after each axis. */

/** RGB, row by row, three bytes a pixel. */
export interface Picture {
  data: Uint8Array;
  width: number;
  height: number;
}

/** Bits behind the point of a coefficient: 32 less 8 of the pixel and 2 of headroom. */
const precision = 22;
const support = 2;

/** Along the width first, as Pillow up to 12, then along the height; an axis that keeps its size is left alone. */
export function resizePillow(picture: Picture, width: number, height: number): Picture {
  const { data } = picture;
  const across =
    width === picture.width ? data : resample(data, picture.height, picture.width, width, { row: picture.width * 3, pixel: 3 });
  // After the first pass a row has the new width.
  const down = height === picture.height ? across : resample(across, width, picture.height, height, { row: 3, pixel: width * 3 });
  return { data: down, width, height };
}

/** Resamples `lines` lines of `from` pixels to `to`; strides of the source are in bytes from line to line and from pixel to pixel. */
function resample(source: Uint8Array, lines: number, from: number, to: number, stride: { row: number; pixel: number }): Uint8Array {
  const taps = coefficients(from, to);
  const out = new Uint8Array(lines * to * 3);
  // Down a column, lines lie side by side also in the result.
  const isVertical = stride.row === 3;
  const [lineStep, pixelStep] = isVertical ? [3, lines * 3] : [to * 3, 3];
  for (let line = 0; line < lines; line++)
    for (let i = 0; i < to; i++) {
      const { first, weights } = taps[i]!;
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (precision - 1);
        let at = line * stride.row + first * stride.pixel + channel;
        for (const weight of weights) {
          sum += source[at]! * weight;
          at += stride.pixel;
        }
        out[line * lineStep + i * pixelStep + channel] = Math.min(Math.max(Math.floor(sum / 2 ** precision), 0), 255);
      }
    }
  return out;
}

/** The source pixels of each target pixel, with weights in fixed point that sum to one. */
function coefficients(from: number, to: number): { first: number; weights: number[] }[] {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - reach + 0.5), 0);
    const last = Math.min(Math.trunc(center + reach + 0.5), from);
    const raw = Array.from({ length: last - first }, (_, k) => bicubic((k + first - center + 0.5) * (1 / stretch)));
    const total = raw.reduce((sum, weight) => sum + weight, 0);
    return { first, weights: raw.map(weight => roundHalfAway(weight * (1 / total) * 2 ** precision)) };
  });
}

/** Keys' kernel (1981) with a = -0.5. */
function bicubic(position: number): number {
  const a = -0.5;
  const x = Math.abs(position);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function roundHalfAway(x: number): number {
  return x < 0 ? Math.trunc(x - 0.5) : Math.trunc(x + 0.5);
}
