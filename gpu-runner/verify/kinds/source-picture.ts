/** What a source, its mask and its borders become before a run, and how the run's result becomes the picture. */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { z } from "zod";
import type { Region } from "../../pipeline/mask.ts";
import { prepareSource, type SourcePicture } from "../../pipeline/source.ts";
import { float32Input, type VerifyContext, type VerifyKind } from "../kind.ts";

/** As in a picture request, without the files. */
export const sourceSettingsSchema = z.strictObject({
  blur: z.number().default(0),
  paddingCrop: z.int().nullable().default(null),
  fill: z.enum(["original", "noise", "blur"]).default("original"),
  outpaint: z.strictObject({ left: z.int(), right: z.int(), top: z.int(), bottom: z.int() }).nullable().default(null),
});
type SourceSettings = z.infer<typeof sourceSettingsSchema>;

const paramsSchema = sourceSettingsSchema.extend({ width: z.int(), height: z.int() });

export const sourcePictureKind: VerifyKind = {
  kind: "source-picture",
  supports: () => null,
  async run({ params, inputs }, context) {
    const { width, height, ...settings } = paramsSchema.parse(params);
    const { pixels, mask, region, finish } = await sourceOf(settings, { width, height }, context, "mask" in inputs);
    const result = toBytes(float32Input(context, "result").data);
    return {
      pixels,
      mask: { data: mask ?? new Float32Array(), shape: [height, width] },
      region: { json: region && corners(region) },
      finished: { data: Float32Array.from(await finish(result), byte => byte / 255), shape: [height, width, 3] },
    };
  },
};

/** The case's `image` [H, W, 3] and `mask` [H, W] in whole bytes / 255, as files of a request. */
export async function sourceOf(
  { blur, paddingCrop, fill, outpaint }: SourceSettings,
  { width, height }: { width: number; height: number },
  context: VerifyContext,
  isMasked: boolean,
): Promise<SourcePicture> {
  const folder = mkdtempSync(join(context.cacheDir, "source-"));
  const file = (name: string) => join(folder, `${name}.png`);
  try {
    await writePng(context, "image", file("image"));
    if (isMasked) await writePng(context, "mask", file("mask"));
    const mask = isMasked ? { image: "mask", blur, padding_crop: paddingCrop, fill } : null;
    const source = await prepareSource({ source: { image: "image", strength: 1 }, mask, outpaint, width, height }, { file, adapter: file });
    return source!;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function writePng(context: VerifyContext, name: string, path: string): Promise<void> {
  const { data, shape } = float32Input(context, name);
  const [height, width, channels = 1] = shape as [number, number, (1 | 3)?];
  await sharp(toBytes(data), { raw: { width, height, channels } }).png().toFile(path);
}

function toBytes(values: Float32Array): Uint8ClampedArray<ArrayBuffer> {
  return Uint8ClampedArray.from(values, value => value * 255);
}

function corners({ left, top, width, height }: Region): [number, number, number, number] {
  return [left, top, left + width, top + height];
}
