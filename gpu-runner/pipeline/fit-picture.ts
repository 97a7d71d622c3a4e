/** Parts of pictures brought to the size of a run and back, without distortion; as `resize_mode` "fill" and "crop" of diffusers' pictures. */
import { type Bytes, resample } from "./resample.ts";

/** As large as fits, in the middle; what is left free continues the edges. */
export function fitInto(picture: Bytes, channels: number, width: number, height: number): Bytes {
  const isWider = width / height < picture.width / picture.height;
  const inner = isWider
    ? { width, height: Math.max(Math.floor((picture.height * width) / picture.width), 1) }
    : { width: Math.max(Math.floor((picture.width * height) / picture.height), 1), height };
  const scaled = resample(picture, channels, inner.width, inner.height);
  const left = Math.floor(width / 2) - Math.floor(inner.width / 2);
  const top = Math.floor(height / 2) - Math.floor(inner.height / 2);
  const result = new Uint8ClampedArray(width * height * channels);
  for (let y = 0; y < height; y++) {
    const row = beyond(y - top, inner.height);
    for (let x = 0; x < width; x++) {
      const column = beyond(x - left, inner.width);
      for (let channel = 0; channel < channels; channel++) {
        const at = (yy: number, xx: number) => scaled.data[(yy * inner.width + xx) * channels + channel]!;
        const edge = at(row.at, column.at);
        const next = at(row.next, column.next);
        result[(y * width + x) * channels + channel] = Math.floor(edge + (edge - next) / 8 + 0.5);
      }
    }
  }
  return { data: new Uint8Array(result.buffer), width, height };
}

/** Beyond the edges Pillow's bicubic kernel weighs the last two pixels by 9/8 and -1/8; inside both are the same. */
function beyond(position: number, size: number): { at: number; next: number } {
  if (position < 0) return { at: 0, next: Math.min(1, size - 1) };
  if (position >= size) return { at: size - 1, next: Math.max(size - 2, 0) };
  return { at: position, next: position };
}

/** So large that it covers the size, cut on both sides. */
export function cover(picture: Bytes, channels: number, width: number, height: number): Bytes {
  const isWider = width / height > picture.width / picture.height;
  const outer = isWider
    ? { width, height: Math.floor((picture.height * width) / picture.width) }
    : { width: Math.floor((picture.width * height) / picture.height), height };
  const scaled = resample(picture, channels, Math.max(outer.width, width), Math.max(outer.height, height));
  const left = Math.floor(scaled.width / 2) - Math.floor(width / 2);
  const top = Math.floor(scaled.height / 2) - Math.floor(height / 2);
  const result = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * scaled.width + left) * channels;
    result.set(scaled.data.subarray(from, from + width * channels), y * width * channels);
  }
  return { data: result, width, height };
}
