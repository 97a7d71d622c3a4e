/** From a decoder's tensor to pixels. */
import type { TensorF32 } from "../components.ts";

/** [B, 3, H, W] in -1..1 to one [H, W, 3] picture an item in 0..1, clamped. */
export function toUnitPictures({ data, shape }: TensorF32): Float32Array[] {
  const [batch, channels, height, width] = shape as [number, number, number, number];
  const plane = height * width;
  return Array.from({ length: batch }, (_, item) => {
    const picture = new Float32Array(plane * channels);
    for (let channel = 0; channel < channels; channel++) {
      const start = (item * channels + channel) * plane;
      for (let i = 0; i < plane; i++) picture[i * channels + channel] = Math.min(Math.max(data[start + i]! / 2 + 0.5, 0), 1);
    }
    return picture;
  });
}

/** Values in 0..1 to bytes, rounded as numpy does (halves to even). */
export function toBytes(picture: Float32Array): Uint8ClampedArray<ArrayBuffer> {
  // A clamped array rounds halves to even by itself. Its `from` with a function is twenty times as slow as this loop.
  const bytes = new Uint8ClampedArray(picture.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = picture[i]! * 255;
  return bytes;
}
