import { describe, expect, test } from "vitest";
import { batchNoise } from "../../../gpu-runner/noise/generator.ts";
import { philoxNoise } from "../../../gpu-runner/noise/philox.ts";
import { guide } from "../../../gpu-runner/pipeline/guidance.ts";
import { toBytes, toUnitPictures } from "../../../gpu-runner/pipeline/pixels.ts";
import { type TextToImageSettings, textToImage } from "../../../gpu-runner/pipeline/text-to-image.ts";
import { schedulerConfig } from "../../../gpu-runner/schedulers/config.ts";
import { clipTokenizer, vocabularyFromMerges } from "../../../gpu-runner/tokenizer/clip.ts";
import { arithmeticModel } from "./fixtures.ts";

const tokenizer = clipTokenizer(vocabularyFromMerges([], 77));
const settings: TextToImageSettings = {
  prompts: ["a"],
  negativePrompts: ["b"],
  width: 16,
  height: 24,
  steps: 3,
  guidanceScale: 4,
  guidanceRescale: 0,
  clipSkip: 0,
  scheduler: "DDIMScheduler",
  schedulerConfig: schedulerConfig("DDIMScheduler", { prediction_type: "sample", clip_sample: false }),
};
const perItem = 4 * 2 * 3;

function draw(changes: Partial<TextToImageSettings> = {}, seeds = [1], seen: number[] = []) {
  const generators = seeds.map(philoxNoise);
  const noise = () => batchNoise(generators, perItem);
  return textToImage(arithmeticModel(seen), tokenizer, { ...settings, ...changes }, { latents: noise(), noise });
}

describe("text to image", () => {
  test("guides with one batch of twice the size, and without guidance not at all", async () => {
    const [guided, plain]: [number[], number[]] = [[], []];
    await draw({}, [1], guided);
    await draw({ guidanceScale: 1 }, [1], plain);
    expect([guided, plain]).toEqual([
      [2, 2, 2],
      [1, 1, 1],
    ]);
  });

  test("makes latents and a picture of the size asked for", async () => {
    const { latents, image } = await draw();
    expect(latents.shape).toEqual([1, 4, 3, 2]);
    expect(image.shape).toEqual([1, 3, 24, 16]);
  });

  test("follows the prompt and leaves the negative prompt", async () => {
    const at = async (changes: Partial<TextToImageSettings>) => (await draw(changes)).latents.data[0]!;
    const plain = await at({ guidanceScale: 1 });
    // In the vocabulary "z" has a greater id than "b", and that than "a": the arithmetic model draws greater latents for greater ids.
    expect(await at({ guidanceScale: 1, prompts: ["z"] })).toBeGreaterThan(plain);
    expect(await at({ negativePrompts: ["z"] })).toBeLessThan(await at({ negativePrompts: ["b"] }));
  });

  test("skips layers of the prompt alone", async () => {
    const last = async (clipSkip: number) => (await draw({ clipSkip, prompts: ["b"] })).latents.data[0]!;
    const skipped = await Promise.all([0, 1, 2].map(last));
    expect(skipped[1]).toBeGreaterThan(skipped[0]!);
    expect(skipped[2]).toBeGreaterThan(skipped[1]!);
    await expect(last(3)).rejects.toThrow("clip_skip: expected 0, 1 or 2, got 3");
  });

  test("an item's picture does not depend on its batch", async () => {
    const together = await draw({ prompts: ["a", "z"], negativePrompts: ["b", "c"], guidanceRescale: 0.7 }, [1, 2]);
    const alone = await draw({ prompts: ["z"], negativePrompts: ["c"], guidanceRescale: 0.7 }, [2]);
    expect(together.latents.data.subarray(perItem)).toEqual(alone.latents.data);
  });

  test.each([
    { changes: { width: 20 }, message: "width: expected a multiple of 8, got 20" },
    { changes: { height: 0 }, message: "height: expected a multiple of 8, got 0" },
    { changes: { steps: 1001 }, message: "steps: expected an integer of 1 to 1000" },
  ])("refuses $changes", async ({ changes, message }) => {
    await expect(draw(changes)).rejects.toThrow(new RegExp(message));
  });

  test("refuses an inpainting model", async () => {
    const run = { latents: new Float32Array(perItem), noise: () => new Float32Array(perItem) };
    await expect(textToImage(arithmeticModel([], 9), tokenizer, settings, run)).rejects.toThrow("9 channels (inpainting)");
  });

  test("stops between steps", async () => {
    const abort = new AbortController();
    const seen: number[] = [];
    const run = {
      latents: new Float32Array(perItem),
      noise: () => new Float32Array(perItem),
      signal: abort.signal,
      onStep: () => abort.abort(new Error("cancelled")),
    };
    await expect(textToImage(arithmeticModel(seen), tokenizer, settings, run)).rejects.toThrow("cancelled");
    expect(seen).toHaveLength(1);
  });
});

describe("guidance", () => {
  const output = Float32Array.of(1, 2, 3, 5, 2, 4, 1, 7);

  test("goes beyond the conditional prediction", () => {
    expect(Array.from(guide(output, 1, 3, 0))).toEqual([4, 8, -3, 11]);
  });

  test("rescaled wholly, has the conditional prediction's deviation, item by item", () => {
    const deviation = (values: number[]) => {
      const mean = values.reduce((a, b) => a + b) / values.length;
      return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
    };
    const guided = Array.from(guide(output, 2, 3, 1));
    expect(deviation(guided.slice(0, 2))).toBeCloseTo(deviation([2, 4]), 6);
    expect(deviation(guided.slice(2))).toBeCloseTo(deviation([1, 7]), 6);
  });

  test("rescaled by a share, lies between", () => {
    const [none, half, whole] = [0, 0.5, 1].map(rescale => guide(output, 1, 3, rescale));
    for (let i = 0; i < 4; i++) expect(half![i]!).toBeCloseTo((none![i]! + whole![i]!) / 2, 5);
  });
});

test("pixels are clamped, interleaved and rounded", () => {
  const image = { data: Float32Array.of(-2, 0, 1, 2, -1, 0.5), shape: [1, 3, 1, 2] };
  const [picture] = toUnitPictures(image);
  expect(Array.from(picture!)).toEqual([0, 1, 0, 0.5, 1, 0.75]);
  expect(Array.from(toBytes(Float32Array.of(0, 0.5, 1)))).toEqual([0, 128, 255]);
});
