/** Input pictures from files: decoded with caps, turned upright, brought to a size. */
import sharp, { type Sharp } from "sharp";
import type { TensorF32 } from "../components.ts";

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
 * proportions differ, so that nothing is distorted.
 * @param name of the input, for errors
 * @param size absent: its own
 * @throws RangeError that names the input
 */
export function readPicture(path: string, name: string, size?: { width: number; height: number }): Promise<RgbPicture> {
  return decodePicture(path, name, image => {
    const flat = image.flatten({ background: "#ffffff" }).toColourspace("srgb");
    return size ? flat.resize(size.width, size.height, { fit: "cover", kernel: "lanczos3" }) : flat;
  });
}

/** A mask [H, W] in 0..1, brought to the size as `readPicture` does; transparent counts as black. */
export async function readMask(path: string, name: string, size: { width: number; height: number }): Promise<Float32Array> {
  const { data } = await decodePicture(path, name, image =>
    image.flatten({ background: "#000000" }).toColourspace("srgb").resize(size.width, size.height, { fit: "cover", kernel: "linear" }),
  );
  // Rec. 601 luma, which Pillow and browsers take for grey.
  return Float32Array.from({ length: data.length / 3 }, (_, i) => {
    const [r, g, b] = data.subarray(3 * i, 3 * i + 3);
    return (0.299 * r! + 0.587 * g! + 0.114 * b!) / 255;
  });
}

async function decodePicture(path: string, name: string, prepare: (image: Sharp) => Sharp): Promise<RgbPicture> {
  try {
    const image = sharp(path, { limitInputPixels: maxPixels, pages: 1, failOn: "error" });
    const { format } = await image.metadata();
    if (!formats.includes(format)) throw new Error(`expected one of ${formats.join(", ")}, got ${format}`);
    const { data, info } = await prepare(image.autoOrient()).removeAlpha().raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
    return { data, width: info.width, height: info.height };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new RangeError(`${name}: expected a picture of at most ${maxPixels} pixels, got one that cannot be read: ${reason}`);
  }
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
