/** Input pictures from files: decoded with caps, turned upright, brought to a size. */
import sharp, { type Sharp } from "sharp";
import type { TensorF32 } from "../components.ts";
import { cover } from "./fit-picture.ts";

/** Rasters only: a vector format could draw anything, and read other files. */
const formats = ["png", "jpeg", "webp", "gif", "tiff", "heif"];
const maxPixels = 64 * 1024 * 1024;

/** RGB, row by row, 3 bytes a pixel. */
export interface RgbPicture {
  data: Uint8Array;
  width: number;
  height: number;
}

/**
 * The first frame, upright as its EXIF says, transparency on white. It covers the size: scaled evenly, and cut at the middle where the
 * proportions differ, so that nothing is distorted (diffusers' `resize_mode` "crop", A1111's "crop and resize").
 * @param name of the input, for errors
 * @param size absent: its own
 * @throws RangeError that names the input
 */
export async function readPicture(path: string, name: string, size?: { width: number; height: number }): Promise<RgbPicture> {
  const picture = await decodePicture(path, name, "#ffffff");
  return size ? cover(picture, 3, size.width, size.height) : picture;
}

/** A mask [H, W] in 0..1, brought to the size as `readPicture` does; transparent counts as black. */
export async function readMask(path: string, name: string, size: { width: number; height: number }): Promise<Float32Array> {
  const { data, width, height } = await decodePicture(path, name, "#000000");
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++) grey[i] = luma(data[3 * i]!, data[3 * i + 1]!, data[3 * i + 2]!);
  return Float32Array.from(cover({ data: grey, width, height }, 1, size.width, size.height).data, value => value / 255);
}

/** Rec. 601, which Pillow and browsers take for grey. */
function luma(r: number, g: number, b: number): number {
  return Math.floor(0.299 * r + 0.587 * g + 0.114 * b + 0.5);
}

async function decodePicture(path: string, name: string, background: string): Promise<RgbPicture> {
  try {
    const image = sharp(path, { limitInputPixels: maxPixels, pages: 1, failOn: "error" });
    const { format } = await image.metadata();
    if (!formats.includes(format)) throw new Error(`expected one of ${formats.join(", ")}, got ${format}`);
    const { data, info } = await upright(image, background).raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
    return { data, width: info.width, height: info.height };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new RangeError(`${name}: expected a picture of at most ${maxPixels} pixels, got one that cannot be read: ${reason}`);
  }
}

function upright(image: Sharp, background: string): Sharp {
  return image.autoOrient().flatten({ background }).toColourspace("srgb").removeAlpha();
}

/** To [1, 3, H, W] in -1..1. */
export function toTensor({ data, width, height }: RgbPicture): TensorF32 {
  return planes(data, width, height, value => value / 127.5 - 1);
}

/** To [1, 3, H, W] in 0..1, as control maps are read. */
export function toUnitTensor({ data, width, height }: RgbPicture): TensorF32 {
  return planes(data, width, height, value => value / 255);
}

function planes(data: Uint8Array, width: number, height: number, scale: (value: number) => number): TensorF32 {
  const plane = width * height;
  const result = new Float32Array(3 * plane);
  for (let i = 0; i < plane; i++) for (let channel = 0; channel < 3; channel++) result[channel * plane + i] = scale(data[3 * i + channel]!);
  return { data: result, shape: [1, 3, height, width] };
}
