import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { TrainableModel } from "../../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../../gpu-runner/load.ts";
import { openDreamBoothStep } from "../../../../gpu-runner/train/methods/dreambooth.ts";
import { loraLayers, openLoraStep } from "../../../../gpu-runner/train/methods/lora.ts";
import { initialRows, openInversionStep } from "../../../../gpu-runner/train/methods/textual-inversion.ts";
import { AdamW, type AdamWSettings } from "../../../../gpu-runner/train/optimizer.ts";
import type { StepBatch } from "../../../../gpu-runner/train/step.ts";
import { wave } from "../../support/graph.ts";
import { goldenModel } from "../../support/model-folder.ts";

const cacheDir = mkdtempSync(join(tmpdir(), "atelier-test-"));
const options = { provider: "cpu", cacheDir, threads: 1 } as const;
const adamw: AdamWSettings = { betas: [0.9, 0.999], weight_decay: 0, epsilon: 1e-8, clip_norm: null, moments: "float32" };
let model: TrainableModel;

beforeAll(async () => {
  model = await loadDiffusionModel(goldenModel, options);
});
afterAll(async () => {
  await model.release();
  rmSync(cacheDir, { recursive: true });
});

/** One item of 8x8 latents whose text has these ids. */
function batchOf(ids: readonly number[]): StepBatch {
  const shape = [1, model.description.latentChannels, 8, 8];
  const tensor = (seed: number) => wave(shape, seed);
  return {
    sample: tensor(1),
    target: tensor(2),
    lossWeights: { data: new Float32Array(64).fill(1), shape: [1, 1, 8, 8] },
    timesteps: [400],
    inputIds: [[ids]],
    encoderHiddenStates: null,
    added: null,
    controlMap: null,
    imageEmbeds: null,
    concepts: [0],
    references: null,
  };
}

describe("textual inversion", () => {
  test("moves the rows that the batch has, and no other by a bit", async () => {
    const [encoder] = model.textEncoders;
    const { vocabularySize, width } = encoder!.config;
    const start = initialRows(encoder!, [5, 6], 2, 2);
    expect(start.shape).toEqual([4, width]);
    expect(start.data.slice(2 * width)).toEqual(start.data.slice(0, 2 * width));
    const step = openInversionStep(model, [start], options);
    const batch = batchOf([1, vocabularySize, 7, vocabularySize + 2, 2]);
    const before = await step.losses(batch, true);
    expect(await step.losses(batch, false)).toEqual(before);
    const gradient = await step.gradients(batch);
    expect(gradient[0]).toBeCloseTo(before[0]!, 5);
    await new AdamW(step.tensors, adamw).step(1, { main: 1e-2, text: 1e-2 });
    const moved = Array.from({ length: 4 }, (_, row) =>
      start.data.subarray(row * width, (row + 1) * width).some((value, i) => !Object.is(value, step.tensors.values[row * width + i])),
    );
    expect(moved).toEqual([true, false, true, false]);
    expect((await step.losses(batch, false))[0]).toBe(before[0]);
    expect((await step.losses(batch, true))[0]).toBeLessThan(before[0]!);
    await step.release();
  });
});

describe("LoRA", () => {
  test.each([false, true])("begins as the base model and learns (DoRA %s)", async dora => {
    const settings = { method: "lora", rank: 2, alpha: 1, text_encoder: true, dora, start_from: null } as const;
    const layers = loraLayers(model, { ...settings, targets: ["attention", "feed-forward", "convolution"] });
    expect(new Set(layers.map(({ component }) => component))).toEqual(new Set(["unet", "textEncoder"]));
    const step = openLoraStep(model, layers, 7, options);
    const batch = batchOf([1, 5, 7, 9, 2]);
    const [base] = await step.losses(batch, false);
    expect((await step.losses(batch, true))[0]).toBeCloseTo(base!, 4);
    await step.gradients(batch);
    await new AdamW(step.tensors, adamw).step(1, { main: 1e-3, text: 1e-3 });
    expect((await step.losses(batch, true))[0]).toBeLessThan(base!);
    await step.release();
  });
});

describe("DreamBooth", () => {
  test("begins as the base model, and a step along the gradient lessens the loss as it predicts", async () => {
    const step = openDreamBoothStep(model, true, options);
    const batch = batchOf([1, 5, 7, 9, 2]);
    const [base] = await step.losses(batch, false);
    expect((await step.losses(batch, true))[0]).toBeCloseTo(base!, 4);
    await step.gradients(batch);
    const { values, gradients } = step.tensors;
    const square = gradients.reduce((sum, value) => sum + value * value, 0);
    const length = (1e-2 * base!) / square;
    for (let i = 0; i < values.length; i++) values[i]! -= length * gradients[i]!;
    const [after] = await step.losses(batch, true);
    expect((base! - after!) / (length * square)).toBeGreaterThan(0.8);
    expect((base! - after!) / (length * square)).toBeLessThan(1.2);
    await step.release();
  });
});
