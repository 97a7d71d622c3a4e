/**
 * The VAE in overlapping tiles, whose memory does not grow with the picture; as diffusers' `enable_tiling`. Tiles see less of the picture than
 * the whole would, so results differ a little; neighbours are blended linearly over their overlap.
 */
import type { DiffusionModel, TensorF32 } from "../components.ts";

export interface Tiling {
  /** Side of a tile in latents and in pixels. */
  latentSize: number;
  pixelSize: number;
  /** Share of a tile that its neighbour covers as well. */
  overlap: number;
}

const tilePixels = 512;

/** Tiles of 512 pixels that overlap by a quarter. */
export function defaultTiling({ description }: DiffusionModel): Tiling {
  return { latentSize: tilePixels / description.vaeScaleFactor, pixelSize: tilePixels, overlap: 0.25 };
}

export function tiledDecode(model: DiffusionModel, latents: TensorF32, tiling: Tiling): Promise<TensorF32> {
  const { latentSize, pixelSize, overlap } = tiling;
  return inTiles(latents, latentSize, pixelSize, overlap, tile => model.decodeLatents(tile));
}

/** Mean and logarithm of the variance are blended each by itself. */
export async function tiledEncode(
  model: DiffusionModel,
  image: TensorF32,
  tiling: Tiling,
): Promise<{ mean: TensorF32; logvar: TensorF32 }> {
  const { latentSize, pixelSize, overlap } = tiling;
  const channels = model.description.latentChannels;
  const moments = await inTiles(image, pixelSize, latentSize, overlap, async tile => {
    const { mean, logvar } = await model.encodeImage(tile);
    return joinChannels(mean, logvar);
  });
  return { mean: pickChannels(moments, 0, channels), logvar: pickChannels(moments, channels, channels) };
}

/** @param size of a tile before `compute`, @param resultSize after it */
async function inTiles(
  whole: TensorF32,
  size: number,
  resultSize: number,
  overlap: number,
  compute: (tile: TensorF32) => Promise<TensorF32>,
): Promise<TensorF32> {
  const [, , height, width] = whole.shape as [number, number, number, number];
  if (height <= size && width <= size) return compute(whole);
  const stride = Math.trunc(size * (1 - overlap));
  const blend = Math.trunc(resultSize * overlap);
  const rows: TensorF32[][] = [];
  for (let y = 0; y < height; y += stride) {
    const row: TensorF32[] = [];
    for (let x = 0; x < width; x += stride) {
      const tile = await compute(crop(whole, y, x, size, size));
      // Neighbours above and to the left are blended already, and are read so.
      blendVertically(rows.at(-1)?.[row.length], tile, blend);
      blendHorizontally(row.at(-1), tile, blend);
      row.push(tile);
    }
    rows.push(row);
  }
  const kept = resultSize - blend;
  return assemble(rows.map(row => row.map(tile => crop(tile, 0, 0, kept, kept))));
}

/** At most `maxHeight` x `maxWidth` from (top, left), less where the tensor ends. */
export function crop({ data, shape }: TensorF32, top: number, left: number, maxHeight: number, maxWidth: number): TensorF32 {
  const [batch, channels, height, width] = shape as [number, number, number, number];
  const [h, w] = [Math.min(maxHeight, height - top), Math.min(maxWidth, width - left)];
  const result = new Float32Array(batch * channels * h * w);
  for (let plane = 0; plane < batch * channels; plane++) {
    for (let y = 0; y < h; y++) {
      const from = (plane * height + top + y) * width + left;
      result.set(data.subarray(from, from + w), (plane * h + y) * w);
    }
  }
  return { data: result, shape: [batch, channels, h, w] };
}

function blendVertically(above: TensorF32 | undefined, tile: TensorF32, extent: number): void {
  if (above === undefined) return;
  const [batch, channels, height, width] = tile.shape as [number, number, number, number];
  const aboveHeight = above.shape[2]!;
  const rows = Math.min(extent, height, aboveHeight);
  for (let plane = 0; plane < batch * channels; plane++) {
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < width; x++) {
        const at = (plane * height + y) * width + x;
        const other = above.data[(plane * aboveHeight + aboveHeight - rows + y) * width + x]!;
        tile.data[at] = other * (1 - y / rows) + tile.data[at]! * (y / rows);
      }
    }
  }
}

function blendHorizontally(left: TensorF32 | undefined, tile: TensorF32, extent: number): void {
  if (left === undefined) return;
  const [batch, channels, height, width] = tile.shape as [number, number, number, number];
  const leftWidth = left.shape[3]!;
  const columns = Math.min(extent, width, leftWidth);
  for (let row = 0; row < batch * channels * height; row++) {
    for (let x = 0; x < columns; x++) {
      const at = row * width + x;
      const other = left.data[row * leftWidth + leftWidth - columns + x]!;
      tile.data[at] = other * (1 - x / columns) + tile.data[at]! * (x / columns);
    }
  }
}

function assemble(rows: readonly (readonly TensorF32[])[]): TensorF32 {
  const [batch, channels] = rows[0]![0]!.shape as [number, number, number, number];
  const height = rows.reduce((sum, row) => sum + row[0]!.shape[2]!, 0);
  const width = rows[0]!.reduce((sum, tile) => sum + tile.shape[3]!, 0);
  const data = new Float32Array(batch * channels * height * width);
  let top = 0;
  for (const row of rows) {
    let left = 0;
    for (const tile of row) {
      const [, , h, w] = tile.shape as [number, number, number, number];
      for (let line = 0; line < batch * channels * h; line++) {
        const [plane, y] = [Math.floor(line / h), line % h];
        data.set(tile.data.subarray(line * w, (line + 1) * w), (plane * height + top + y) * width + left);
      }
      left += w;
    }
    top += row[0]!.shape[2]!;
  }
  return { data, shape: [batch, channels, height, width] };
}

function joinChannels(a: TensorF32, b: TensorF32): TensorF32 {
  const [batch, channels, height, width] = a.shape as [number, number, number, number];
  const size = channels * height * width;
  const data = new Float32Array(2 * a.data.length);
  for (let item = 0; item < batch; item++) {
    data.set(a.data.subarray(item * size, (item + 1) * size), 2 * item * size);
    data.set(b.data.subarray(item * size, (item + 1) * size), (2 * item + 1) * size);
  }
  return { data, shape: [batch, 2 * channels, height, width] };
}

function pickChannels({ data, shape }: TensorF32, from: number, count: number): TensorF32 {
  const [batch, channels, height, width] = shape as [number, number, number, number];
  const plane = height * width;
  const result = new Float32Array(batch * count * plane);
  for (let item = 0; item < batch; item++) {
    const start = (item * channels + from) * plane;
    result.set(data.subarray(start, start + count * plane), item * count * plane);
  }
  return { data: result, shape: [batch, count, height, width] };
}
