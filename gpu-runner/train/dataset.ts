/** A training's pictures as a step reads them: latents, text states, masks and maps by item, each computed once. */
import { createHash } from "node:crypto";
import { mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { DatasetItem } from "../../shared/training.ts";
import type { TensorF32 } from "../components.ts";
import type { PictureModel } from "../pipeline/context.ts";
import { type RgbPicture, readMask, readPicture, toTensor, toUnitTensor } from "../pipeline/input-picture.ts";
import { type ItemAdapters, noAdapters } from "../pipeline/item-adapters.ts";
import { encodeMean } from "../pipeline/latents.ts";
import { itemTexts, type TextStates } from "../pipeline/texts.ts";
import { withSafetensors } from "../weights/safetensors.ts";
import { bytesOf, writeSafetensors } from "../weights/safetensors-write.ts";
import { bucketSizes, nearestBucket, type Size } from "./buckets.ts";

export interface DatasetOptions {
  items: readonly DatasetItem[];
  resolution: number;
  /** Whether pictures are also kept mirrored. */
  flip: boolean;
  /** Absolute path of a file by its SHA-256. */
  file(sha256: string): string;
  /** Latents are kept here, by content. */
  cacheDir: string;
  /** Awaited after each picture. */
  between?: () => Promise<void>;
}

/** One picture at its bucket's size; every list has the picture first and its mirror image second, where there is one. */
export interface PreparedItem {
  item: DatasetItem;
  /** Index of its bucket. */
  bucket: number;
  size: Size;
  /** On the sampler's scale, [C, h, w]. */
  latents: readonly Float32Array[];
  /** Loss weights [h, w]; null: 1 everywhere. */
  masks: readonly Float32Array[] | null;
  /** The condition, else the picture itself: RGB at the bucket's size. Read anew each time: pixels are 48 times their latents. */
  condition(isFlipped: boolean): Promise<RgbPicture>;
  /** SDXL's micro-conditioning: [height, width] of the file, the cut, the bucket. */
  timeIds: readonly number[];
}

/** @throws RangeError that names the item whose picture cannot be read */
export async function prepareItems({ model }: PictureModel, options: DatasetOptions): Promise<PreparedItem[]> {
  const { description } = model;
  const levels = model.unet.config.levels.length;
  const sizes = bucketSizes(options.resolution, description.vaeScaleFactor * 2 ** (levels - 1));
  const prepared: PreparedItem[] = [];
  for (const [index, item] of options.items.entries()) {
    const bucket = nearestBucket(sizes, item);
    const size = sizes[bucket]!;
    const name = `items[${index}]`;
    const latents: Float32Array[] = [];
    for (const isFlipped of options.flip ? [false, true] : [false])
      latents.push(await cachedLatents(model, item.sha256, size, isFlipped, options, name));
    const conditionFile = options.file(item.condition ?? item.sha256);
    prepared.push({
      item,
      bucket,
      size,
      latents,
      masks:
        item.mask === null
          ? null
          : await latentMasks(options.file(item.mask), `${name}.mask`, size, description.vaeScaleFactor, options.flip),
      condition: async isFlipped => oriented(await readPicture(conditionFile, `${name}.condition`, size), isFlipped),
      timeIds: [item.height, item.width, ...cropOf(item, size), size.height, size.width],
    });
    await options.between?.();
  }
  return prepared;
}

/** [top, left] of what `cover` cuts off, in pixels of the scaled picture. */
function cropOf(item: Size, { width, height }: Size): [number, number] {
  const isWider = width / height > item.width / item.height;
  const [fullWidth, fullHeight] = isWider
    ? [width, Math.floor((item.height * width) / item.width)]
    : [Math.floor((item.width * height) / item.height), height];
  return [Math.max(Math.floor((fullHeight - height) / 2), 0), Math.max(Math.floor((fullWidth - width) / 2), 0)];
}

async function cachedLatents(
  model: PictureModel["model"],
  sha256: string,
  size: Size,
  isFlipped: boolean,
  { cacheDir, file }: DatasetOptions,
  name: string,
): Promise<Float32Array> {
  const key = createHash("sha256").update(`${model.description.hash} ${sha256} ${size.width}x${size.height} ${isFlipped}`).digest("hex");
  const path = join(cacheDir, "latents", `${key}.safetensors`);
  const known = readCached(path);
  if (known) return known;
  const picture = oriented(await readPicture(file(sha256), name, size), isFlipped);
  const mean = await encodeMean(model, toTensor(picture), false);
  const { scalingFactor } = model.description.vae;
  const latents = mean.map(value => value * scalingFactor);
  mkdirSync(join(cacheDir, "latents"), { recursive: true });
  const temporary = `${path}.${process.pid}.${crypto.randomUUID()}.tmp`;
  try {
    writeSafetensors(temporary, [{ name: "latents", dtype: "F32", shape: [latents.length], data: () => [bytesOf(latents)] }]);
    renameSync(temporary, path);
  } finally {
    rmSync(temporary, { force: true });
  }
  return latents;
}

function readCached(path: string): Float32Array | null {
  try {
    return withSafetensors(path, source => source.readFloat32("latents"));
  } catch (error) {
    // What is absent is made; what is broken is made again, under the same name.
    if (error instanceof Error) return null;
    throw error;
  }
}

/** Mirrored left to right where asked for. */
export function oriented(picture: RgbPicture, isFlipped: boolean): RgbPicture {
  if (!isFlipped) return picture;
  const { data, width, height } = picture;
  const mirrored = new Uint8Array(data.length);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) mirrored[3 * (y * width + x) + c] = data[3 * (y * width + width - 1 - x) + c]!;
  return { data: mirrored, width, height };
}

/** Means over each latent's pixels: a weight of the loss need not be 0 or 1. */
async function latentMasks(path: string, name: string, size: Size, factor: number, flip: boolean): Promise<Float32Array[]> {
  const pixels = await readMask(path, name, size);
  const [width, height] = [size.width / factor, size.height / factor];
  const mask = new Float32Array(width * height);
  for (const [i, value] of pixels.entries()) {
    const [y, x] = [Math.floor(i / size.width), i % size.width];
    mask[Math.floor(y / factor) * width + Math.floor(x / factor)]! += value / (factor * factor);
  }
  const mirrored = mask.map((_, i) => mask[i - (i % width) + width - 1 - (i % width)]!);
  return flip ? [mask, mirrored] : [mask];
}

/** A control map as nets read it, [1, 3, H, W] in 0..1. */
export async function controlMapOf(item: PreparedItem, isFlipped: boolean): Promise<TensorF32> {
  return toUnitTensor(await item.condition(isFlipped));
}

/** What the UNet reads of a caption with no text encoder trained, and with the words and layers of adapters; each caption is encoded once. */
export class CaptionStates {
  readonly #model: PictureModel;
  readonly #adapters: ItemAdapters;
  readonly #known = new Map<string, Promise<TextStates>>();

  constructor(model: PictureModel, adapters: ItemAdapters = noAdapters) {
    this.#model = model;
    this.#adapters = adapters;
  }

  /** Cut after one chunk, as trainers do: a batch has one length. */
  of(caption: string): Promise<TextStates> {
    const known = this.#known.get(caption) ?? this.#encode(caption);
    this.#known.set(caption, known);
    return known;
  }

  async #encode(prompt: string): Promise<TextStates> {
    const settings = {
      prompt,
      prompt2: null,
      negativePrompt: null,
      negativePrompt2: null,
      syntax: "plain",
      clipSkip: 0,
      mostChunks: 1,
    } as const;
    const texts = itemTexts(this.#model, settings, this.#adapters, false);
    return (await texts.at({ step: 0, steps: 1 })).conditional;
  }
}

/** What a dataset's pictures are for. */
export interface ItemSplit {
  train: DatasetItem[];
  /** Choose the weights that are kept. */
  validation: DatasetItem[];
  /** Are scored. */
  test: DatasetItem[];
  /** Generic pictures, which must not be forgotten. */
  prior: DatasetItem[];
}

/** Held-out pictures from which on the choice of the weights has pictures of its own. */
const enoughToShare = 16;

/**
 * As the dataset says. Where it holds nothing out, every tenth picture from the last one back is, if there are five or more. Held-out pictures
 * of no stated use are for the scores, and of sixteen or more every second one chooses the weights instead. Of fewer, or of `validation` alone,
 * the same pictures do both, each at noises and timesteps of its own: half of eight would make the scores' intervals wider than what the
 * choice among some ten checkpoints can add to them.
 * @param chooses false where no weights are chosen: then all that is held out is scored
 */
export function splitItems(items: readonly DatasetItem[], chooses = true): ItemSplit {
  const of = (wanted: DatasetItem["split"]) => items.filter(({ split }) => split === wanted);
  const [train, validation, test, prior] = [of("train"), of("validation"), of("test"), of("prior")];
  if (!chooses && validation.length + test.length > 0) return { train, validation: [], test: [...validation, ...test], prior };
  if (validation.length > 0) return { train, validation, test: test.length > 0 ? test : validation, prior };
  const isHeld = (i: number) => (train.length - 1 - i) % 10 === 0;
  const holdsOut = test.length === 0 && train.length >= 5;
  const held = holdsOut ? train.filter((_, i) => isHeld(i)) : test;
  const rest = holdsOut ? train.filter((_, i) => !isHeld(i)) : train;
  if (!chooses) return { train: rest, validation: [], test: held, prior };
  if (held.length < enoughToShare) return { train: rest, validation: held, test: held, prior };
  return { train: rest, validation: held.filter((_, i) => i % 2 === 1), test: held.filter((_, i) => i % 2 === 0), prior };
}
