import type { RgbPixels } from "./picture.ts";

export interface TileOptions {
  /** By how much the picture is made smaller, and larger again. */
  factor: number;
}

/** What the tile ControlNets add detail to: the picture without its own, as means of squares, linearly between their centres. */
export function tile({ data, width, height }: RgbPixels, { factor }: TileOptions): RgbPixels {
  const small = { width: Math.ceil(width / factor), height: Math.ceil(height / factor) };
  const means = new Float64Array(3 * small.width * small.height);
  for (let y = 0; y < small.height; y++) {
    for (let x = 0; x < small.width; x++) {
      const [right, bottom] = [Math.min((x + 1) * factor, width), Math.min((y + 1) * factor, height)];
      const count = (right - x * factor) * (bottom - y * factor);
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        for (let row = y * factor; row < bottom; row++) {
          for (let column = x * factor; column < right; column++) sum += data[3 * (row * width + column) + channel]!;
        }
        means[3 * (y * small.width + x) + channel] = sum / count;
      }
    }
  }
  const rows = Array.from({ length: height }, (_, y) => between(y, factor, small.height));
  const columns = Array.from({ length: width }, (_, x) => between(x, factor, small.width));
  const result = new Uint8Array(data.length);
  for (const [y, row] of rows.entries()) {
    for (const [x, column] of columns.entries()) {
      for (let channel = 0; channel < 3; channel++) {
        const at = (line: number, place: number) => means[3 * (line * small.width + place) + channel]!;
        const upper = at(row.from, column.from) * (1 - column.share) + at(row.from, column.to) * column.share;
        const lower = at(row.to, column.from) * (1 - column.share) + at(row.to, column.to) * column.share;
        result[3 * (y * width + x) + channel] = Math.round(upper * (1 - row.share) + lower * row.share);
      }
    }
  }
  return { data: result, width, height };
}

/** The two squares between whose centres a pixel lies, and how near it is to the second. */
function between(pixel: number, factor: number, count: number): { from: number; to: number; share: number } {
  const position = (pixel + 0.5) / factor - 0.5;
  const from = Math.min(Math.max(Math.floor(position), 0), count - 1);
  return { from, to: Math.min(from + 1, count - 1), share: Math.min(Math.max(position - from, 0), 1) };
}
