/**
 * Guards ENGINE_VERSION: whoever changes what determines a picture's bytes has to raise it, since it is part of every cache key. The record
 * lies in test/goldens/engine; `UPDATE_ENGINE_GOLDENS=1` writes it anew.
 */
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import type { PredictArgs } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { philoxNoise } from "../../../gpu-runner/noise/philox.ts";
import type { PictureContext, PictureModel } from "../../../gpu-runner/pipeline/context.ts";
import { encodePicture } from "../../../gpu-runner/pipeline/encode-picture.ts";
import { preparePictureModel } from "../../../gpu-runner/pipeline/prepare-model.ts";
import { runPicture } from "../../../gpu-runner/pipeline/run-picture.ts";
import { samplerClasses, samplerConfig } from "../../../gpu-runner/schedulers/config.ts";
import { samplers } from "../../../gpu-runner/schedulers/index.ts";
import { initialLatents } from "../../../gpu-runner/schedulers/sampler.ts";
import { clipTokenizer, vocabularyFromMerges } from "../../../gpu-runner/tokenizer/clip.ts";
import { readClipMerges } from "../../../gpu-runner/tokenizer/load.ts";
import { ENGINE_VERSION } from "../../../shared/engine.ts";
import { type PictureFormat, pictureFormats } from "../../../shared/picture.ts";
import type { ProgressReport } from "../../../shared/protocol.ts";
import { type SamplerName, samplerNames } from "../../../shared/samplers.ts";
import { arithmeticModel, contextWith, request } from "./fixtures.ts";

const record = join(import.meta.dirname, "../../goldens/engine");
const folder = join(import.meta.dirname, "../../goldens/base/models/sd15");
const update = process.env.UPDATE_ENGINE_GOLDENS === "1";
const pixels = Uint8ClampedArray.from({ length: 64 * 48 * 3 }, (_, i) => (i * 7) % 256);
const sha256 = (data: Uint8Array | string) => createHash("sha256").update(data).digest("hex");
const floats = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

let scratch: string;
let pictureModel: PictureModel;
let context: PictureContext;
beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), "atelier-engine-test-"));
  pictureModel = await preparePictureModel(await loadDiffusionModel(folder, { provider: "cpu", cacheDir: scratch }));
  context = { ...contextWith(pictureModel.model), model: async () => pictureModel };
});
afterAll(async () => {
  await pictureModel.model.release();
  rmSync(scratch, { recursive: true, force: true });
});

async function trajectory(sampler: SamplerName): Promise<Float32Array> {
  const config = samplerConfig(sampler, {}, { beta_start: 0.00085, beta_end: 0.012, beta_schedule: "scaled_linear", clip_sample: false });
  const { schedule, sample } = samplers[samplerClasses[sampler]];
  const generator = philoxNoise(3);
  const plan = schedule(config, 9);
  return sample(config, plan, {
    model: async (x, t) => x.map(value => 0.5 * value + t / 1000),
    latents: initialLatents(plan, generator(64)),
    batch: 1,
    noise: () => generator(64),
  });
}

/** Everything whose bytes are the same on every machine; encoders are checked where sharp's binary is the one that was recorded. */
async function currentHashes(): Promise<Record<string, string>> {
  const hashes: Record<string, string> = { noise: sha256(floats(philoxNoise(123)(256))) };
  hashes.tokens = sha256(clipTokenizer(vocabularyFromMerges(readClipMerges(), 77)).encodePadded(request.prompt).join());
  for (const sampler of samplerNames) hashes[`sampler ${sampler}`] = sha256(floats(await trajectory(sampler)));
  for (const format of pictureFormats) hashes[`${platform} ${format}`] = sha256(await encodePicture(pixels, { ...request, format }));
  return hashes;
}
const platform = `${process.platform}-${process.arch}`;

const drawn = (format: PictureFormat, more: { seed?: number } = {}) =>
  runPicture(context, { ...request, model: pictureModel.model.description.hash, format, ...more });
const advice = `Pictures have changed: raise ENGINE_VERSION in shared/engine.ts, then run this test with UPDATE_ENGINE_GOLDENS=1.`;

describe(`engine version ${ENGINE_VERSION}`, () => {
  test("the parts that make a picture give the recorded bytes", async () => {
    const current = await currentHashes();
    const file = join(record, "hashes.json");
    if (update) {
      mkdirSync(record, { recursive: true });
      writeFileSync(file, `${JSON.stringify({ engine_version: ENGINE_VERSION, hashes: current }, null, 2)}\n`);
    }
    const stored = z
      .object({ engine_version: z.int(), hashes: z.record(z.string(), z.string()) })
      .parse(JSON.parse(readFileSync(file, "utf8")));
    const comparable = Object.fromEntries(Object.entries(current).filter(([name]) => name in stored.hashes || !name.startsWith(platform)));
    const expected = Object.fromEntries(Object.entries(stored.hashes).filter(([name]) => name in current));
    expect({ engine_version: ENGINE_VERSION, hashes: comparable }, advice).toEqual({
      engine_version: stored.engine_version,
      hashes: expected,
    });
  });

  test("a whole picture is the recorded one, to a step of brightness", async () => {
    const { bytes } = await drawn("png");
    const file = join(record, "picture.png");
    if (update) writeFileSync(file, bytes);
    const [now, then] = await Promise.all([Buffer.from(bytes), readFileSync(file)].map(png => sharp(png).raw().toBuffer()));
    expect(now!.length).toBe(then!.length);
    // Kernels differ between processors in the last bits, which can tip a rounding.
    expect(Math.max(...now!.map((value, i) => Math.abs(value - then![i]!))), advice).toBeLessThanOrEqual(1);
    const [meta, recorded] = await Promise.all([Buffer.from(bytes), readFileSync(file)].map(png => sharp(png).metadata()));
    expect([meta!.comments, meta!.xmp], advice).toEqual([recorded!.comments, recorded!.xmp]);
  });
});

describe("running a request", () => {
  test.each(pictureFormats)("gives a %s file of the size asked for, twice the same", async format => {
    const first = await drawn(format);
    expect(first).toMatchObject({
      mediaType: `image/${format}`,
      width: request.width,
      height: request.height,
      sha256: sha256(first.bytes),
    });
    expect(await sharp(Buffer.from(first.bytes)).metadata()).toMatchObject({ format, width: request.width, height: request.height });
    expect((await drawn(format)).sha256).toBe(first.sha256);
    expect((await drawn(format, { seed: 8 })).sha256).not.toBe(first.sha256);
  });

  test("that diverges fails, rather than giving a black picture", async () => {
    const model = Object.assign(arithmeticModel(), {
      predict: async ({ sample }: PredictArgs) => ({ ...sample, data: sample.data.map(() => Number.NaN) }),
    });
    await expect(runPicture(contextWith(model), request)).rejects.toThrow(/^latents: expected finite numbers/);
  });

  test.each([
    { previewMs: 0, previews: request.steps - 1 },
    { previewMs: 60_000, previews: 0 },
  ])("reports every step, with $previews previews at one in $previewMs ms", async ({ previewMs, previews }) => {
    const reports: ProgressReport[] = [];
    await runPicture(context, request, { previewMs, onProgress: report => reports.push(report) });
    expect(reports.map(({ step, steps }) => [step, steps])).toEqual([1, 2, 3, 4].map(step => [step, request.steps]));
    expect(reports.filter(({ preview }) => preview?.startsWith("data:image/webp;base64,"))).toHaveLength(previews);
  });
});
