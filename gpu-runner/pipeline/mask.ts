/** Operations on masks [H, W] in 0..1, and on the pictures under them. */
import { gaussianBlur } from "./gaussian-blur.ts";
import type { RgbPicture } from "./input-picture.ts";

export interface Region {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Gaussian, with the radius as its deviation, in steps of 1/255. Where an edge was, the blurred mask is 0.5. */
export function blurMask(mask: Float32Array, width: number, height: number, radius: number): Float32Array {
  if (radius === 0) return mask;
  const bytes = new Uint8Array(Uint8ClampedArray.from(mask, value => value * 255).buffer);
  return Float32Array.from(gaussianBlur(bytes, width, height, radius), value => value / 255);
}

/** Deviations of A1111's "fill", and how often each is laid over: from far colours to near ones, at last the picture itself. */
const fillLayers = [
  { deviation: 256, repeats: 1 },
  { deviation: 64, repeats: 1 },
  { deviation: 16, repeats: 2 },
  { deviation: 4, repeats: 4 },
  { deviation: 2, repeats: 2 },
  { deviation: 0, repeats: 1 },
];

/** The masked area filled with the colours around it, ever more blurred towards its middle. */
export function fillFromAround({ data, width, height }: RgbPicture, mask: Float32Array): RgbPicture {
  const plane = width * height;
  /** Colours as far as they are known, and how far that is. */
  const known = [0, 1, 2].map(
    channel => new Uint8Array(Uint8ClampedArray.from({ length: plane }, (_, i) => data[3 * i + channel]! * (1 - mask[i]!)).buffer),
  );
  const alpha = new Uint8Array(Uint8ClampedArray.from(mask, value => 255 * (1 - value)).buffer);
  const result = new Float32Array(3 * plane);
  const resultAlpha = new Float32Array(plane);
  for (const { deviation, repeats } of fillLayers) {
    const shares = gaussianBlur(alpha, width, height, deviation);
    const colours = known.map(values => gaussianBlur(values, width, height, deviation));
    for (let i = 0; i < plane; i++) {
      if (shares[i] === 0) continue;
      const colour = colours.map(values => Math.min((values[i]! * 255) / shares[i]!, 255));
      for (let k = 0; k < repeats; k++) layOver(result, resultAlpha, i, colour, shares[i]! / 255);
    }
  }
  return { data: new Uint8Array(Uint8ClampedArray.from(result).buffer), width, height };
}

/** "Over" of Porter and Duff, of colours that are not multiplied by their alpha. */
function layOver(result: Float32Array, resultAlpha: Float32Array, i: number, colour: readonly number[], alpha: number): void {
  const sum = alpha + resultAlpha[i]! * (1 - alpha);
  const share = alpha / sum;
  for (let channel = 0; channel < 3; channel++) result[3 * i + channel] = result[3 * i + channel]! * (1 - share) + colour[channel]! * share;
  resultAlpha[i] = sum;
}

/**
 * The smallest region around what is masked at all, with padding, widened to the picture's own proportions where that fits into it; to the
 * pixel diffusers' `get_crop_region`, which is A1111's. Null where nothing is masked.
 */
export function cropAround(mask: Float32Array, width: number, height: number, padding: number): Region | null {
  const rows = new Set<number>();
  const columns = new Set<number>();
  for (let i = 0; i < mask.length; i++) {
    if (mask[i] === 0) continue;
    rows.add(Math.floor(i / width));
    columns.add(i % width);
  }
  if (rows.size === 0) return null;
  const range = (values: ReadonlySet<number>, size: number): Range => {
    const sorted = [...values].sort((a, b) => a - b);
    return { from: Math.max(sorted[0]! - padding, 0), to: Math.min(sorted.at(-1)! + 1 + padding, size) };
  };
  let [y, x] = [range(rows, height), range(columns, width)];
  const ratio = width / height;
  if ((x.to - x.from) / (y.to - y.from) > ratio) y = widened(y, (x.to - x.from) / ratio, height);
  else x = widened(x, (y.to - y.from) * ratio, width);
  return { left: x.from, top: y.from, width: x.to - x.from, height: y.to - y.from };
}

interface Range {
  from: number;
  to: number;
}

/** About the same middle, but within 0..limit. */
function widened({ from, to }: Range, size: number, limit: number): Range {
  const added = Math.trunc(size - (to - from));
  const newSize = Math.min(to - from + added, limit);
  const start = Math.min(from - Math.floor(added / 2), limit - newSize);
  return { from: Math.max(start, 0), to: Math.max(start, 0) + newSize };
}

/** Pictures row by row with any number of channels. */
export function cut(data: Float32Array, width: number, channels: number, region: Region): Float32Array {
  const result = new Float32Array(region.width * region.height * channels);
  for (let y = 0; y < region.height; y++) {
    const from = ((region.top + y) * width + region.left) * channels;
    result.set(data.subarray(from, from + region.width * channels), y * region.width * channels);
  }
  return result;
}

/** `over` on `under` as far as the mask says; RGB row by row. */
export function composite(under: Uint8Array, over: Uint8Array, mask: Float32Array): Uint8ClampedArray<ArrayBuffer> {
  const result = new Uint8ClampedArray(under.length);
  for (let i = 0; i < under.length; i++) {
    const share = mask[Math.floor(i / 3)]!;
    result[i] = under[i]! * (1 - share) + over[i]! * share;
  }
  return result;
}
