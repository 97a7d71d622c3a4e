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

/** @param pixels RGB, row by row, of the given size: the request's own, or what its second pass makes of that */
export async function encodePicture(
  pixels: Uint8ClampedArray,
  request: PictureRequest,
  { width, height }: { width: number; height: number } = request,
): Promise<Uint8Array<ArrayBuffer>> {
  const { format } = request;
  const image = sharp(pixels, { raw: { width, height, channels: 3 } }).withXmp(recipeXmp(request));
  const file = await encoders[format](image).toBuffer();
  return Uint8Array.from(embedComment(file, format, recipeText(request)));
}
