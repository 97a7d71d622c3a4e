/** Pixels to a picture file that says how it was made. The same request and pixels give the same bytes: no job, no time. */
import sharp, { type Sharp } from "sharp";
import type { PictureFormat, PictureRequest } from "../../shared/picture.ts";
import { embedComment } from "./embed-comment.ts";
import { recipeText, recipeXmp } from "./recipe.ts";

/** Every setting that decides bytes is written out, so that a new default of sharp changes nothing. */
const encoders = {
  png: image => image.png({ compressionLevel: 9, adaptiveFiltering: true, palette: false, progressive: false }),
  webp: image => image.webp({ quality: 92, effort: 4, smartSubsample: true, lossless: false }),
  jpeg: image => image.jpeg({ quality: 92, chromaSubsampling: "4:4:4", progressive: false, mozjpeg: false }),
} as const satisfies Record<PictureFormat, (image: Sharp) => Sharp>;

/** @param pixels RGB, row by row, `request.width` x `request.height` */
export async function encodePicture(pixels: Uint8ClampedArray, request: PictureRequest): Promise<Uint8Array<ArrayBuffer>> {
  const { width, height, format } = request;
  const image = sharp(pixels, { raw: { width, height, channels: 3 } }).withXmp(recipeXmp(request));
  const file = await encoders[format](image).toBuffer();
  return Uint8Array.from(embedComment(file, format, recipeText(request)));
}
