/** What a request's source, mask and outpainting mean in pixels: what a run starts from, and how its result becomes the picture. */
import sharp from "sharp";
import type { PictureRequest } from "../../shared/picture.ts";
import type { TensorF32 } from "../components.ts";
import type { PictureContext } from "./context.ts";
import { cover, fitInto } from "./fit-picture.ts";
import { type RgbPicture, readMask, readPicture, toTensor } from "./input-picture.ts";
import { blurMask, composite, cropAround, cut, fillFromAround, type Region } from "./mask.ts";

export interface SourcePicture {
  /** [1, 3, H, W] in -1..1 at the request's size. */
  pixels: TensorF32;
  /** [H, W] in 0..1; null: no mask. */
  mask: Float32Array | null;
  /** What of the picture the run works on, at the request's size; null: all of it. */
  region: Region | null;
  /** RGB of the run's result to RGB of the picture: with a mask, what lies outside it stays as it was. */
  finish(result: Uint8ClampedArray<ArrayBuffer>): Promise<Uint8ClampedArray<ArrayBuffer>>;
}

/** Over how many pixels an outpainted border passes into the picture, where the request gives no blur. */
const feather = 8;

/** What of a request is about its source. */
export type SourceSettings = Pick<PictureRequest, "source" | "mask" | "outpaint" | "width" | "height">;

/** @throws RangeError that names the input or the setting */
export async function prepareSource(request: SourceSettings, inputs: PictureContext["inputs"]): Promise<SourcePicture | null> {
  const { source, mask, outpaint, width, height } = request;
  if (source === null) {
    if (mask !== null || outpaint !== null) throw new RangeError(`${mask ? "mask" : "outpaint"}: expected a source beside it, got none`);
    return null;
  }
  const picture = outpaint
    ? await readPadded(inputs.file(source.image), outpaint, width, height)
    : await readPicture(inputs.file(source.image), "source.image", { width, height });
  const sharpMask = await maskOf(request, inputs);
  if (sharpMask === null) return { pixels: toTensor(picture), mask: null, region: null, finish: async result => result };
  const soft = blurMask(sharpMask, width, height, mask?.blur ?? feather);
  // Around all that the blurred mask touches, as in A1111: otherwise the border of the crop would show.
  const region = mask?.padding_crop == null ? null : cropAround(soft, width, height, mask.padding_crop);
  const finish = async (result: Uint8ClampedArray<ArrayBuffer>) => {
    const over = region ? pasted(picture, { data: new Uint8Array(result.buffer), width, height }, region) : result;
    return composite(picture.data, new Uint8Array(over.buffer), soft);
  };
  const part = region ? cropPicture(picture, region) : picture;
  const partMask = region ? enlargedMask(cut(soft, width, 1, region), region, width, height) : soft;
  const isFilled = mask !== null && mask.fill !== "original";
  return { pixels: toTensor(isFilled ? fillFromAround(part, partMask) : part), mask: partMask, region, finish };
}

type Outpaint = NonNullable<PictureRequest["outpaint"]>;

/** The source within its borders; these continue its edges. */
async function readPadded(path: string, { left, right, top, bottom }: Outpaint, width: number, height: number): Promise<RgbPicture> {
  const inner = { width: width - left - right, height: height - top - bottom };
  if (inner.width < 1 || inner.height < 1) {
    throw new RangeError(
      `outpaint: expected borders that leave some of ${width} x ${height} to the source, got ${inner.width} x ${inner.height}`,
    );
  }
  const picture = await readPicture(path, "source.image", inner);
  const data = await sharp(picture.data, { raw: { ...inner, channels: 3 } })
    .extend({ left, right, top, bottom, extendWith: "copy" })
    .raw()
    .toBuffer();
  return { data, width, height };
}

/** Where to repaint: what the mask says, and an outpainting's border with a little of the source beside it. */
async function maskOf({ mask, outpaint, width, height }: SourceSettings, inputs: PictureContext["inputs"]): Promise<Float32Array | null> {
  const drawn = mask ? await readMask(inputs.file(mask.image), "mask.image", { width, height }) : null;
  if (outpaint === null) return drawn?.map(value => (value >= 0.5 ? 1 : 0)) ?? null;
  const { left, right, top, bottom } = outpaint;
  // Two deviations of the blur: the border itself is all but wholly repainted.
  const overlap = 2 * (mask?.blur ?? feather);
  const inside = (at: number, before: number, after: number, size: number) =>
    at >= (before > 0 ? before + overlap : 0) && at < size - (after > 0 ? after + overlap : 0);
  return Float32Array.from({ length: width * height }, (_, i) => {
    const isSource = inside(i % width, left, right, width) && inside(Math.floor(i / width), top, bottom, height);
    return !isSource || (drawn?.[i] ?? 0) >= 0.5 ? 1 : 0;
  });
}

/** The region at the picture's own size. */
export function cropPicture({ data, width, height }: RgbPicture, region: Region): RgbPicture {
  const part = Uint8Array.from(cut(Float32Array.from(data), width, 3, region));
  return fitInto({ data: part, width: region.width, height: region.height }, 3, width, height);
}

function enlargedMask(mask: Float32Array, region: Region, width: number, height: number): Float32Array {
  const bytes = new Uint8Array(Uint8ClampedArray.from(mask, value => value * 255).buffer);
  const { data } = fitInto({ data: bytes, width: region.width, height: region.height }, 1, width, height);
  return Float32Array.from(data, value => value / 255);
}

/** The whole picture with the result, made smaller again, in its region. */
function pasted(picture: RgbPicture, result: RgbPicture, region: Region): Uint8ClampedArray<ArrayBuffer> {
  const { data } = cover(result, 3, region.width, region.height);
  const whole = Uint8ClampedArray.from(picture.data);
  for (let y = 0; y < region.height; y++) {
    const row = data.subarray(y * region.width * 3, (y + 1) * region.width * 3);
    whole.set(row, ((region.top + y) * picture.width + region.left) * 3);
  }
  return whole;
}
