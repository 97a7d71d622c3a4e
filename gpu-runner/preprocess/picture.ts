/** RGB, row by row, 3 bytes a pixel. */
export interface RgbPixels {
  data: Uint8Array;
  width: number;
  height: number;
}

/** A picture of one channel as RGB. */
export function greyPixels(values: ArrayLike<number>, width: number, height: number): RgbPixels {
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) data.fill(values[i]!, 3 * i, 3 * i + 3);
  return { data, width, height };
}
