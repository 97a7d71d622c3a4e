import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { PredictArgs } from "../../../gpu-runner/components.ts";
import { runPicture, runPictures } from "../../../gpu-runner/pipeline/run-picture.ts";
import type { PictureRequest } from "../../../shared/picture.ts";
import type { ProgressReport } from "../../../shared/protocol.ts";
import { arithmeticModel, contextWith, request } from "./fixtures.ts";

const plain: PictureRequest = { ...request, width: 16, height: 24, steps: 3, sampler: "ddim", sampler_options: {}, guidance_rescale: 0 };
const files = { source: "a".repeat(64), mask: "b".repeat(64), nothing: "c".repeat(64), broken: "d".repeat(64), alpha: "e".repeat(64) };
const paths: Record<string, string> = {};
let scratch: string;

beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), "atelier-run-picture-"));
  const write = async (name: keyof typeof files, width: number, height: number, pixel: (x: number, y: number) => number[]) => {
    const pixels = Array.from({ length: width * height }, (_, i) => pixel(i % width, Math.floor(i / width))).flat();
    const path = join(scratch, `${name}.png`);
    const channels = pixels.length / (width * height) === 4 ? 4 : 3;
    await sharp(Uint8Array.from(pixels), { raw: { width, height, channels } }).png().toFile(path);
    paths[files[name]] = path;
  };
  await write("source", 16, 24, (x, y) => [10 * x, 10 * y, 100]);
  await write("mask", 16, 24, x => (x >= 8 ? [255, 255, 255] : [0, 0, 0]));
  await write("nothing", 16, 24, () => [0, 0, 0]);
  await write("alpha", 16, 24, () => [0, 0, 0, 0]);
  paths[files.broken] = import.meta.filename;
});
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

async function draw(changes: Partial<PictureRequest> = {}, seen: PredictArgs[] = [], model = arithmeticModel({}, seen)) {
  const picture = await runPicture(contextWith(model, paths), { ...plain, ...changes });
  const { data, info } = await sharp(Buffer.from(picture.bytes)).raw().toBuffer({ resolveWithObject: true });
  return { ...picture, pixels: data, info };
}
const brightness = async (changes: Partial<PictureRequest>) =>
  (await draw(changes)).pixels.reduce((sum, value, i) => sum + (i % 3 === 0 ? value : 0), 0);
const batches = (seen: readonly PredictArgs[]) => seen.map(({ sample }) => sample.shape[0]);
const source = { image: files.source, strength: 0.7 };
const mask = { image: files.mask, blur: 0, padding_crop: null, fill: "original" as const };

describe("text to image", () => {
  test("guides with one batch of twice the size, and without guidance not at all", async () => {
    const [guided, unguided]: [PredictArgs[], PredictArgs[]] = [[], []];
    await draw({}, guided);
    await draw({ guidance_scale: 1 }, unguided);
    expect([batches(guided), batches(unguided)]).toEqual([
      [2, 2, 2],
      [1, 1, 1],
    ]);
  });

  test("guides only between the shares of the run that it is asked to", async () => {
    const seen: PredictArgs[] = [];
    await draw({ steps: 4, guidance_start: 0.25, guidance_end: 0.75 }, seen);
    expect(batches(seen)).toEqual([1, 2, 2, 1]);
  });

  test("a model that reads its guidance is asked once a step, and told the scale", async () => {
    const seen: PredictArgs[] = [];
    await draw({}, seen, arithmeticModel({ readsGuidance: true }, seen));
    expect(seen.map(({ guidance }) => guidance)).toEqual([[5], [5], [5]]);
    expect(batches(seen)).toEqual([1, 1, 1]);
  });

  test("follows the prompt and leaves the negative prompt", async () => {
    const at = (changes: Partial<PictureRequest>) => brightness({ guidance_scale: 1.5, ...changes });
    // In the vocabulary "z" has a greater id than "b", and that than "a": epsilon grows with ids, so the picture's first channel falls.
    expect(await at({ prompt: "z" })).not.toBe(await at({ prompt: "a" }));
    expect(await at({ prompt: "b", negative_prompt: "z" })).not.toBe(await at({ prompt: "b", negative_prompt: "b" }));
  });

  test("skips layers of the prompt alone, in A1111's syntax of both", async () => {
    const states = async (changes: Partial<PictureRequest>) => {
      const seen: PredictArgs[] = [];
      await draw({ prompt: "b", negative_prompt: "b", clip_skip: 1, ...changes }, seen);
      return Array.from(seen[0]!.encoderHiddenStates.data);
    };
    const [negative, positive] = await states({});
    expect(positive! / negative!).toBeCloseTo(10, 4);
    const [negativeToo, other] = await states({ prompt_syntax: "a1111" });
    expect(other! / negativeToo!).toBeCloseTo(1, 5);
    await expect(draw({ clip_skip: 13 })).rejects.toThrow("clip_skip: expected 0 to 12 on this model, got 13");
  });

  test("a prompt that changes is read at each step", async () => {
    const seen: PredictArgs[] = [];
    await draw({ prompt: "[a:z:2]", prompt_syntax: "a1111", guidance_scale: 1, steps: 4 }, seen);
    const states = seen.map(({ encoderHiddenStates }) => encoderHiddenStates.data[0]!);
    expect([states[0] === states[1], states[1] === states[2], states[2] === states[3]]).toEqual([true, false, true]);
  });

  test("a longer prompt takes more chunks, and the other half as many", async () => {
    const seen: PredictArgs[] = [];
    await draw({ prompt: "x ".repeat(100) }, seen);
    expect(seen[0]!.encoderHiddenStates.shape).toEqual([2, 2, 1]);
    const apart: PredictArgs[] = [];
    await draw({ prompt: "x ".repeat(100), prompt_syntax: "a1111" }, apart);
    expect(apart.slice(0, 2).map(({ encoderHiddenStates }) => encoderHiddenStates.shape)).toEqual([
      [1, 1, 1],
      [1, 2, 1],
    ]);
  });

  test.each([
    { changes: { width: 20 }, message: "width: expected a multiple of 8, got 20" },
    { changes: { steps: 1001 }, message: "steps: expected an integer of 1 to 1000" },
    { changes: { prompt: "a AND b", prompt_syntax: "a1111" as const }, message: "prompt: expected no AND" },
    {
      changes: { prompt: "a <lora:cat:0.8>", prompt_syntax: "a1111" as const },
      message: "prompt: expected adapters in the request's own field, got a <lora:…> tag",
    },
    { changes: { image_guidance_scale: 1.5 }, message: "model: expected one that can do edit, got one for text-to-image" },
    { changes: { mask }, message: "mask: expected a source beside it, got none" },
  ])("refuses $message", async ({ changes, message }) => {
    await expect(draw(changes)).rejects.toThrow(message);
  });

  test("stops between steps", async () => {
    const abort = new AbortController();
    const seen: PredictArgs[] = [];
    const run = { onProgress: () => abort.abort(new Error("cancelled")) };
    await expect(runPicture(contextWith(arithmeticModel({}, seen)), plain, run, abort.signal)).rejects.toThrow("cancelled");
    expect(seen).toHaveLength(1);
  });
});

describe("a batch", () => {
  const other: PictureRequest = {
    ...plain,
    prompt: "z",
    negative_prompt: "c",
    seed: 2,
    guidance_scale: 3,
    guidance_rescale: 0.7,
    noise_source: "mt19937",
    variation: { seed: 5, strength: 0.3 },
  };

  test("computes its items together, each with its own settings, as if alone", async () => {
    const seen: PredictArgs[] = [];
    const together = await runPictures(contextWith(arithmeticModel({}, seen)), [plain, other], [{}, {}]);
    expect(batches(seen)).toEqual([4, 4, 4]);
    const alone = [await draw(), await draw(other)];
    expect(together.map(({ sha256 }) => sha256)).toEqual(alone.map(({ sha256 }) => sha256));
  });

  test("reports progress to each item", async () => {
    const reports: ProgressReport[][] = [[], []];
    const runs = reports.map(list => ({ previewMs: 0, onProgress: (report: ProgressReport) => void list.push(report) }));
    await runPictures(contextWith(arithmeticModel()), [plain, other], runs);
    for (const list of reports) expect(list.map(({ step, steps }) => [step, steps])).toEqual([1, 2, 3].map(step => [step, 3]));
    expect(reports[0]![0]!.preview).not.toBe(reports[1]![0]!.preview);
  });

  test("with prompts of unequal length asks the model apart", async () => {
    const seen: PredictArgs[] = [];
    await runPictures(contextWith(arithmeticModel({}, seen)), [plain, { ...other, prompt: "x ".repeat(100) }], [{}, {}]);
    expect(batches(seen.slice(0, 2))).toEqual([2, 2]);
  });
});

describe("from a picture", () => {
  test("runs only the steps that the strength leaves", async () => {
    const seen: PredictArgs[] = [];
    await draw({ source: { ...source, strength: 0.5 }, steps: 4 }, seen);
    expect(seen).toHaveLength(2);
    await expect(draw({ source: { ...source, strength: 0.1 }, steps: 4 })).rejects.toThrow(/^strength: expected at least 1\/4/);
  });

  test("stays near it at a low strength", async () => {
    // No noise at all leaves what the arithmetic decoder makes of the arithmetic encoder's latents.
    const unchanged = (await draw({ source: { ...source, strength: 0.02 }, steps: 50, guidance_scale: 1, prompt: "", seed: 1 })).pixels;
    const distance = async (strength: number) => {
      const { pixels } = await draw({ source: { ...source, strength }, steps: 50, guidance_scale: 1, prompt: "" });
      return pixels.reduce((sum, value, i) => sum + Math.abs(value - unchanged[i]!), 0);
    };
    expect(await distance(0.02)).toBeLessThan((await distance(1)) / 2);
  });

  test("outside a mask every pixel is the picture's", async () => {
    const { pixels } = await draw({ source: { ...source, strength: 1 }, mask });
    const original = await sharp(paths[files.source]).raw().toBuffer();
    const differing = Array.from({ length: 16 * 24 }, (_, i) => i).filter(i =>
      [0, 1, 2].some(c => pixels[3 * i + c] !== original[3 * i + c]),
    );
    expect(differing.length).toBeGreaterThan(0);
    expect(differing.every(i => i % 16 >= 8)).toBe(true);
  });

  test("a mask that is empty leaves the picture as it was", async () => {
    const { pixels } = await draw({ source, mask: { ...mask, image: files.nothing, padding_crop: 4 } });
    expect(pixels).toEqual(await sharp(paths[files.source]).raw().toBuffer());
  });

  test.each(["original", "noise", "blur"] as const)("inpaints what starts as %s", async fill => {
    const { sha256 } = await draw({ source, mask: { ...mask, fill, blur: 2, padding_crop: 2 } });
    const { sha256: whole } = await draw({ source, mask: { ...mask, fill, blur: 2 } });
    expect(sha256).not.toBe(whole);
  });

  test("an inpainting model reads mask and masked picture", async () => {
    const seen: PredictArgs[] = [];
    await draw({ source: { ...source, strength: 1 }, mask }, seen, arithmeticModel({ unetInputChannels: 9, tasks: ["inpaint"] }, seen));
    const { sample } = seen[0]!;
    expect(sample.shape).toEqual([2, 9, 3, 2]);
    // Two latents a row: the right one is repainted. The masked picture is mid grey there.
    expect(Array.from(sample.data.subarray(4 * 6, 5 * 6))).toEqual([0, 1, 0, 1, 0, 1]);
    expect(Array.from(sample.data.subarray(5 * 6, 6 * 6)).filter((_, i) => i % 2 === 1)).toSatisfy((values: number[]) =>
      values.every(value => Math.abs(value) < 1e-6),
    );
  });

  test("an edit model is asked with and without picture and prompt", async () => {
    const seen: PredictArgs[] = [];
    const edit = { source: { ...source, strength: 1 }, image_guidance_scale: 1.5 };
    await draw(edit, seen, arithmeticModel({ unetInputChannels: 8, tasks: ["edit"] }, seen));
    const { sample, encoderHiddenStates } = seen[0]!;
    expect(sample.shape).toEqual([3, 8, 3, 2]);
    const picture = (row: number) => Array.from(sample.data.subarray((8 * row + 4) * 6, (8 * row + 8) * 6));
    expect([picture(0).every(value => value === 0), picture(1).some(value => value !== 0)]).toEqual([true, true]);
    expect(picture(1)).toEqual(picture(2));
    expect(encoderHiddenStates.data[0]).toBe(encoderHiddenStates.data[1]);
    expect(encoderHiddenStates.data[1]).not.toBe(encoderHiddenStates.data[2]);
  });

  test("outpainting keeps the middle and fills the border", async () => {
    const outpaint = { left: 16, right: 16, top: 0, bottom: 0 };
    const { pixels, info } = await draw({
      width: 48,
      source: { ...source, strength: 1 },
      outpaint,
      mask: { ...mask, image: files.nothing, blur: 1 },
    });
    expect([info.width, info.height]).toEqual([48, 24]);
    const original = await sharp(paths[files.source]).raw().toBuffer();
    const at = (x: number, y: number) => Array.from(pixels.subarray(3 * (y * 48 + x), 3 * (y * 48 + x) + 3));
    expect(at(24, 12)).toEqual(Array.from(original.subarray(3 * (12 * 16 + 8), 3 * (12 * 16 + 8) + 3)));
    await expect(draw({ source, outpaint: { ...outpaint, left: 20 } })).rejects.toThrow("outpaint: expected borders that leave");
  });

  test("transparency is white, and a broken file is refused by its name", async () => {
    const seen: PredictArgs[] = [];
    const model = arithmeticModel({ unetInputChannels: 8, tasks: ["edit"] }, seen);
    await draw({ source: { image: files.alpha, strength: 1 }, image_guidance_scale: 1.5 }, seen, model);
    expect(seen[0]!.sample.data[(8 + 4) * 6]).toBe(1);
    await expect(draw({ source: { image: files.broken, strength: 1 } })).rejects.toThrow(/^source\.image: expected a picture/);
  });
});

describe("a second pass", () => {
  test.each(["latent", "pixel"] as const)("enlarges in %s space", async mode => {
    const seen: PredictArgs[] = [];
    const reports: ProgressReport[] = [];
    const upscaled = { ...plain, upscale: { scale: 1.5, mode, strength: 0.5, steps: 4 } };
    const picture = await runPicture(contextWith(arithmeticModel({}, seen)), upscaled, { onProgress: report => reports.push(report) });
    expect([picture.width, picture.height]).toEqual([24, 40]);
    expect(await sharp(Buffer.from(picture.bytes)).metadata()).toMatchObject({ width: 24, height: 40 });
    expect(seen.map(({ sample }) => sample.shape.slice(2))).toEqual([
      [3, 2],
      [3, 2],
      [3, 2],
      [5, 3],
      [5, 3],
    ]);
    expect(reports.map(({ step, steps }) => [step, steps])).toEqual([1, 2, 3, 4, 5].map(step => [step, 5]));
  });

  test("a refiner takes over where it is told to", async () => {
    const [first, second]: [PredictArgs[], PredictArgs[]] = [[], []];
    const base = contextWith(arithmeticModel({}, first), paths);
    const refining = contextWith(arithmeticModel({ hash: files.mask }, second));
    const context = { ...base, model: (hash: string) => (hash === files.mask ? refining : base).model(hash) };
    await runPicture(context, { ...plain, steps: 5, refiner: { model: files.mask, switch_at: 0.6 } });
    expect([first.length, second.length]).toEqual([3, 2]);
    expect(second[0]!.timesteps[0]!).toBeLessThan(first.at(-1)!.timesteps[0]!);
    const calls = async (switchAt: number, changes: Partial<PictureRequest> = {}) => {
      first.length = 0;
      second.length = 0;
      await runPicture(context, { ...plain, steps: 5, refiner: { model: files.mask, switch_at: switchAt }, ...changes });
      return [first.length, second.length];
    };
    expect([await calls(1), await calls(0)]).toEqual([
      [5, 0],
      [0, 5],
    ]);
    // A strength of 0.4 begins where the refiner is at work already.
    expect(await calls(0.2, { source: { ...source, strength: 0.4 } })).toEqual([0, 2]);
  });
});

test("a seed of variation lies between its two seeds", async () => {
  // So little that no pixel is clamped.
  const quiet: Partial<PictureRequest> = { prompt: "", guidance_scale: 1, sampler_options: { clip_sample: true } };
  const at = (strength: number) => draw({ ...quiet, variation: { seed: 9, strength } });
  expect((await at(0)).pixels).toEqual((await draw(quiet)).pixels);
  const [whole, other] = [await at(1), await draw({ ...quiet, seed: 9 })];
  expect(whole.pixels).toEqual(other.pixels);
  expect((await at(0.5)).pixels).not.toEqual(whole.pixels);
});
