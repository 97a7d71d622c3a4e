/** Pictures as CLIP reads them: transformers' CLIPImageProcessor over Pillow, number for number. */
import { existsSync } from "node:fs";
import { z } from "zod";
import type { TensorF32 } from "../../components.ts";
import { parseConfig } from "../../weights/configs.ts";
import { type Picture, resizePillow } from "./pillow-resize.ts";

export type { Picture };

export interface Preprocessing {
  /** The shorter side after resizing; null: the size stays. */
  shortestEdge: number | null;
  /** [height, width] that is cut out of the middle; null: all of it. */
  crop: readonly [number, number] | null;
  /** What a pixel of 0..255 is multiplied by. */
  scale: number;
  mean: readonly number[];
  deviation: readonly number[];
}

/** Far beyond any encoder's, so that a config from a stranger cannot take the memory. */
const maxSide = 4096;
/** The longer side as a multiple of the shorter one: what is resized is the whole, of which the middle is taken. */
const maxProportion = 64;
const count = z.int().positive().max(maxSide);
const side = z.union([count, z.object({ shortest_edge: count })]);
const box = z.union([count, z.object({ height: count, width: count })]);
/** Pillow's number of bicubic resampling, the only one that CLIP's processors name. */
const bicubic = 3;

const schema = z.object({
  do_resize: z.boolean().default(true),
  size: side.optional(),
  resample: z.literal(bicubic).default(bicubic),
  do_center_crop: z.boolean().default(true),
  crop_size: box.optional(),
  do_rescale: z.boolean().default(true),
  rescale_factor: z.number().default(1 / 255),
  do_normalize: z.boolean().default(true),
  image_mean: z.array(z.number()).length(3).default([0.48145466, 0.4578275, 0.40821073]),
  image_std: z.array(z.number()).length(3).default([0.26862954, 0.26130258, 0.27577711]),
});

/** `preprocessor_config.json` where there is one, else CLIP's defaults at the encoder's picture size. Throws ModelError. */
export function clipPreprocessing(file: string, imageSize: number): Preprocessing {
  const config = existsSync(file) ? parseConfig(file, schema) : schema.parse({});
  const size = config.size ?? imageSize;
  const crop = config.crop_size ?? imageSize;
  return {
    shortestEdge: config.do_resize ? (typeof size === "number" ? size : size.shortest_edge) : null,
    crop: config.do_center_crop ? (typeof crop === "number" ? [crop, crop] : [crop.height, crop.width]) : null,
    scale: config.do_rescale ? config.rescale_factor : 1,
    mean: config.do_normalize ? config.image_mean : [0, 0, 0],
    deviation: config.do_normalize ? config.image_std : [1, 1, 1],
  };
}

/** [1, 3, H, W] of one picture. */
export function toPixelValues(picture: Picture, { shortestEdge, crop, scale, mean, deviation }: Preprocessing): TensorF32 {
  const resized = shortestEdge === null ? picture : resizePillow(picture, ...fitShortest(picture, shortestEdge));
  const [height, width] = crop ?? [resized.height, resized.width];
  const [top, left] = [Math.floor((resized.height - height) / 2), Math.floor((resized.width - width) / 2)];
  const data = new Float32Array(3 * height * width);
  for (let channel = 0; channel < 3; channel++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const [row, column] = [top + y, left + x];
        const isInside = row >= 0 && column >= 0 && row < resized.height && column < resized.width;
        const value = isInside ? resized.data[(row * resized.width + column) * 3 + channel]! : 0;
        data[(channel * height + y) * width + x] = (value * scale - mean[channel]!) / deviation[channel]!;
      }
  return { data, shape: [1, 3, height, width] };
}

function fitShortest({ width, height }: Picture, shortest: number): [width: number, height: number] {
  const [short, long] = width <= height ? [width, height] : [height, width];
  if (long > maxProportion * short)
    throw new RangeError(`picture: expected a longer side of at most ${maxProportion} shorter ones, got ${width} x ${height}`);
  const longer = Math.floor((shortest * long) / short);
  return width <= height ? [shortest, longer] : [longer, shortest];
}
