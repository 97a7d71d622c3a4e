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
    "Steps: 4, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 5, CFG Rescale: 0.7, Seed: 7, Size: 64x48, Model hash: 5a5a5a5a5a, Emphasis: None, RNG: NV, solver_type: heun, Version: Atelier engine 2",
  ]);
  expect(recipeText({ ...request, negative_prompt: "" })).not.toContain("Negative prompt");
  expect(recipeText({ ...request, negative_prompt: null })).not.toContain("Negative prompt");
});

test("the parameter text names every pass, input and adapter", () => {
  const hash = (byte: string) => `sha256:${byte.repeat(32)}`;
  const text = recipeText({
    ...request,
    prompt_syntax: "a1111",
    clip_skip: 1,
    noise_source: "mt19937",
    variation: { seed: 3, strength: 0.25 },
    guidance_end: 0.8,
    source: { image: "ab".repeat(32), strength: 0.6 },
    mask: { image: "cd".repeat(32), blur: 4, padding_crop: 32, fill: "noise" },
    upscale: { scale: 2, mode: "latent", strength: 0.5, steps: 10 },
    refiner: { model: hash("ef"), switch_at: 0.8 },
    tiled_vae: true,
    adapters: [
      { kind: "lora", adapter: hash("12"), weight: 0.8, start: 0, end: 1, text_encoder_weight: 0.7, dora: null },
      { kind: "textual-inversion", adapter: hash("34"), token: "<cat>" },
    ],
  });
  expect(text.split("\n").at(-1)).toBe(
    "Steps: 4, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 5, CFG Rescale: 0.7, Seed: 7, Size: 64x48, Model hash: 5a5a5a5a5a, Clip skip: 2, Variation seed: 3, Variation seed strength: 0.25, CFG interval: 0-0.8, Denoising strength: 0.6, Source hash: ababababab, Mask hash: cdcdcdcdcd, Mask blur: 4, Masked content: noise, Masked area padding: 32, Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent, Hires denoising strength: 0.5, Refiner: efefefefef, Refiner switch at: 0.8, Tiled VAE: true, " +
      'Adapter 0: "lora 1212121212, weight: 0.8, start: 0, end: 1, text_encoder_weight: 0.7, dora: null", Adapter 1: "textual-inversion 3434343434, token: <cat>", RNG: CPU, solver_type: heun, Version: Atelier engine 2',
  );
});
