import sharp from "sharp";
import { describe, expect, test } from "vitest";
import { encodePicture } from "../../../gpu-runner/pipeline/encode-picture.ts";
import { digitalSourceType, recipeText } from "../../../gpu-runner/pipeline/recipe.ts";
import { canonicalPictureRequest, type PictureRequest, pictureFormats } from "../../../shared/picture.ts";
import { request } from "./fixtures.ts";

const pixels = Uint8ClampedArray.from({ length: 64 * 48 * 3 }, (_, i) => (i * 7) % 256);
const encoded = async (changes: Partial<PictureRequest>) => Buffer.from(await encodePicture(pixels, { ...request, ...changes }));

/** UserComment of an EXIF block: found by its mark, read to the end. */
function userComment(exif: Buffer): string {
  const mark = "UNICODE\0";
  return Buffer.from(exif.subarray(exif.indexOf(mark, 0, "latin1") + mark.length))
    .swap16()
    .toString("utf16le");
}

const unescapeXml = (text: string) =>
  text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&quot;", '"').replaceAll("&amp;", "&");

describe.each(pictureFormats)("%s", format => {
  test("says in XMP that a model made it, and from which request", async () => {
    const { xmp } = await sharp(await encoded({ format })).metadata();
    const packet = xmp!.toString();
    expect(packet).toContain(`Iptc4xmpExt:DigitalSourceType="${digitalSourceType}"`);
    const [, written] = packet.match(/atelier:Request="([^"]*)"/)!;
    expect(unescapeXml(written!)).toBe(canonicalPictureRequest({ ...request, format }));
  });

  test("holds the parameters where A1111 looks for them", async () => {
    const { exif, comments } = await sharp(await encoded({ format })).metadata();
    const found = format === "png" ? comments?.find(({ keyword }) => keyword === "parameters")?.text : userComment(exif!);
    expect(found).toBe(recipeText(request));
  });

  test("gives the same bytes for the same request, and other bytes for another seed", async () => {
    const file = await encoded({ format });
    expect(await encoded({ format })).toEqual(file);
    expect(await encoded({ format, seed: 8 })).not.toEqual(file);
  });

  test("keeps the mark where a request is too long for it", async () => {
    const long = await encoded({ format, prompt: '"'.repeat(8192), negative_prompt: "\0".repeat(8192) });
    const { xmp, width, height } = await sharp(long).metadata();
    expect(xmp!.toString()).toContain(digitalSourceType);
    expect([width, height]).toEqual([64, 48]);
  });
});

test("PNG keeps every pixel", async () => {
  const { data } = await sharp(await encoded({}))
    .raw()
    .toBuffer({ resolveWithObject: true });
  expect(new Uint8ClampedArray(data)).toEqual(pixels);
});

test("the parameter text", () => {
  expect(recipeText(request).split("\n")).toEqual([
    request.prompt,
    "Negative prompt: blurry",
    "Steps: 4, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 5, CFG Rescale: 0.7, Seed: 7, Size: 64x48, Model hash: 5a5a5a5a5a, RNG: NV, solver_type: heun, Version: Atelier engine 1",
  ]);
  expect(recipeText({ ...request, negative_prompt: "" })).not.toContain("Negative prompt");
});
