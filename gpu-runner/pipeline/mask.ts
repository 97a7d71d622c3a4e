/** Operations on masks [H, W] in 0..1, and on the pictures under them. */
import sharp from "sharp";
import type { RgbPicture } from "./input-picture.ts";

export interface Region {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** Gaussian, with the radius as its deviation. Where an edge was, the blurred mask is 0.5. */
export async function blurMask(mask: Float32Array, width: number, height: number, radius: number): Promise<Float32Array> {
  // Less than sharp's least deviation changes nothing.
  if (radius < 0.3) return mask;
  const bytes = Uint8ClampedArray.from(mask, value => value * 255);
  const blurred = await sharp(bytes, { raw: { width, height, channels: 1 } })
    .blur(radius)
    .toColourspace("b-w")
    .raw()
    .toBuffer();
  return Float32Array.from(blurred, value => value / 255);
}

/** The greatest deviation first; each leaves less of the gaps that a smaller one cannot reach. */
const fillBlurs = [256, 64, 16, 4];

/** The masked area filled with the colours around it, ever more blurred towards its middle. */
export async function fillFromAround({ data, width, height }: RgbPicture, mask: Float32Array): Promise<RgbPicture> {
  const known = new Uint8ClampedArray(4 * width * height);
  for (let i = 0; i < width * height; i++) {
    const alpha = mask[i]! >= 0.5 ? 0 : 255;
    for (let channel = 0; channel < 3; channel++) known[4 * i + channel] = alpha === 0 ? 0 : data[3 * i + channel]!;
    known[4 * i + 3] = alpha;
  }
  const result = Uint8ClampedArray.from(data);
  for (const deviation of fillBlurs) {
    const blurred = await blurPremultiplied(known, width, height, deviation);
    for (let i = 0; i < width * height; i++) {
      const alpha = blurred[4 * i + 3]!;
      if (mask[i]! < 0.5 || alpha === 0) continue;
      // Where little is known within this deviation, the wider one's colour stays.
      const share = deviation === fillBlurs[0] ? 1 : alpha / 255;
      for (let channel = 0; channel < 3; channel++) {
        const colour = (blurred[4 * i + channel]! * 255) / alpha;
        result[3 * i + channel] = result[3 * i + channel]! * (1 - share) + colour * share;
      }
    }
  }
  return { data: new Uint8Array(result.buffer), width, height };
}

/** Each channel by itself, since sharp would divide by alpha. */
async function blurPremultiplied(rgba: Uint8ClampedArray, width: number, height: number, deviation: number): Promise<Uint8ClampedArray> {
  const plane = width * height;
  const result = new Uint8ClampedArray(4 * plane);
  for (let channel = 0; channel < 4; channel++) {
    const values = Uint8ClampedArray.from({ length: plane }, (_, i) => rgba[4 * i + channel]!);
    const blurred = await sharp(values, { raw: { width, height, channels: 1 } })
      .blur(deviation)
      .toColourspace("b-w")
      .raw()
      .toBuffer();
    for (let i = 0; i < plane; i++) result[4 * i + channel] = blurred[i]!;
  }
  return result;
}

/**
 * The smallest region around what is masked, with padding, widened to the picture's own proportions where that fits into it.
 * Null where nothing is masked.
 */
export function cropAround(mask: Float32Array, width: number, height: number, padding: number): Region | null {
  const rows = new Set<number>();
  const columns = new Set<number>();
  for (let i = 0; i < mask.length; i++) {
    if (mask[i]! < 0.5) continue;
    rows.add(Math.floor(i / width));
    columns.add(i % width);
  }
  if (rows.size === 0) return null;
  const range = (values: ReadonlySet<number>, size: number) => {
    const sorted = [...values].sort((a, b) => a - b);
    return { from: Math.max(sorted[0]! - padding, 0), to: Math.min(sorted.at(-1)! + 1 + padding, size) };
  };
  const [y, x] = [range(rows, height), range(columns, width)];
  const scale = Math.max((y.to - y.from) / height, (x.to - x.from) / width);
  const [left, newWidth] = widen(x.from, x.to, Math.round(scale * width), width);
  const [top, newHeight] = widen(y.from, y.to, Math.round(scale * height), height);
  return { left, top, width: newWidth, height: newHeight };
}

/** About the same middle, but within 0..limit. */
function widen(from: number, to: number, size: number, limit: number): [from: number, size: number] {
  const middle = (from + to) / 2;
  return [Math.min(Math.max(Math.round(middle - size / 2), 0), limit - size), size];
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
