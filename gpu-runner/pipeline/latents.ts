/** Latents of one picture: their shape, and the ways between them and pixels. */
import type { DiffusionModel, TensorF32 } from "../components.ts";
import { defaultTiling, tiledDecode, tiledEncode } from "./tiled-vae.ts";

/** [1, C, h, w] of one picture. @throws RangeError for a size that the VAE cannot make */
export function latentShape({ description }: DiffusionModel, width: number, height: number): [1, number, number, number] {
  const { vaeScaleFactor, latentChannels } = description;
  for (const [name, size] of Object.entries({ width, height })) {
    if (size < 1 || size % vaeScaleFactor !== 0) throw new RangeError(`${name}: expected a multiple of ${vaeScaleFactor}, got ${size}`);
  }
  return [1, latentChannels, height / vaeScaleFactor, width / vaeScaleFactor];
}

/** Latents on the sampler's scale to pixels around -1..1, not clamped, [1, 3, H, W]. */
export function decode(model: DiffusionModel, latents: Float32Array, shape: readonly number[], tiled: boolean): Promise<TensorF32> {
  const { scalingFactor } = model.description.vae;
  const scaled = { data: latents.map(value => value / scalingFactor), shape };
  return tiled ? tiledDecode(model, scaled, defaultTiling(model)) : model.decodeLatents(scaled);
}

/** A sample of the posterior of pixels in -1..1 [1, 3, H, W], on the sampler's scale. @param noise unit Gaussian */
export async function encodeSampled(model: DiffusionModel, image: TensorF32, noise: Float32Array, tiled: boolean): Promise<Float32Array> {
  const { mean, logvar } = await posterior(model, image, tiled);
  const { scalingFactor } = model.description.vae;
  return mean.data.map((value, i) => (value + Math.exp(0.5 * logvar.data[i]!) * noise[i]!) * scalingFactor);
}

/** The posterior's mean as the VAE gives it, which is what edit models were trained on. */
export async function encodeMean(model: DiffusionModel, image: TensorF32, tiled: boolean): Promise<Float32Array> {
  return (await posterior(model, image, tiled)).mean.data;
}

function posterior(model: DiffusionModel, image: TensorF32, tiled: boolean) {
  return tiled ? tiledEncode(model, image, defaultTiling(model)) : model.encodeImage(image);
}

/** A [H, W] mask at the latents' size [h, w], by the nearest pixel as torch takes it; 1 from 0.5 on. */
export function latentMask(mask: Float32Array, width: number, height: number, latentWidth: number, latentHeight: number): Float32Array {
  return Float32Array.from({ length: latentWidth * latentHeight }, (_, i) => {
    const y = Math.floor((Math.floor(i / latentWidth) * height) / latentHeight);
    const x = Math.floor(((i % latentWidth) * width) / latentWidth);
    return mask[y * width + x]! >= 0.5 ? 1 : 0;
  });
}

/** [C, h, w] to another size, bilinear between the centres of the latents as torch's `interpolate`. */
export function resizeLatents(
  latents: Float32Array,
  from: readonly [height: number, width: number],
  to: readonly [height: number, width: number],
): Float32Array {
  const [height, width] = from;
  const [newHeight, newWidth] = to;
  const channels = latents.length / (height * width);
  const rows = interpolationPoints(height, newHeight);
  const columns = interpolationPoints(width, newWidth);
  const result = new Float32Array(channels * newHeight * newWidth);
  for (let channel = 0; channel < channels; channel++) {
    const at = (y: number, x: number) => latents[(channel * height + y) * width + x]!;
    for (const [y, row] of rows.entries()) {
      for (const [x, column] of columns.entries()) {
        const upper = at(row.low, column.low) * (1 - column.share) + at(row.low, column.high) * column.share;
        const lower = at(row.high, column.low) * (1 - column.share) + at(row.high, column.high) * column.share;
        result[(channel * newHeight + y) * newWidth + x] = upper * (1 - row.share) + lower * row.share;
      }
    }
  }
  return result;
}

/** Where each of `to` samples lies between two of `from`. */
function interpolationPoints(from: number, to: number): { low: number; high: number; share: number }[] {
  return Array.from({ length: to }, (_, i) => {
    const position = Math.max(((i + 0.5) * from) / to - 0.5, 0);
    const low = Math.min(Math.floor(position), from - 1);
    return { low, high: Math.min(low + 1, from - 1), share: position - low };
  });
}
