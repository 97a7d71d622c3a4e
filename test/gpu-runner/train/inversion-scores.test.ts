/** Scores of a textual inversion on the embedded model: what it is compared with, and that nothing moves where its token is absent. */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import type { TrainableModel } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { defaultsOf } from "../../../gpu-runner/model-defaults.ts";
import type { PictureModel } from "../../../gpu-runner/pipeline/context.ts";
import { tokenizersOf } from "../../../gpu-runner/tokenizer/model-tokenizers.ts";
import { type BatchSettings, trainingAlphas } from "../../../gpu-runner/train/batch.ts";
import type { TrainingContext } from "../../../gpu-runner/train/context.ts";
import { prepareItems } from "../../../gpu-runner/train/dataset.ts";
import { evaluate } from "../../../gpu-runner/train/evaluate.ts";
import { methods } from "../../../gpu-runner/train/methods/index.ts";
import { AdamW } from "../../../gpu-runner/train/optimizer.ts";
import { train } from "../../../gpu-runner/train/trainer.ts";
import { sha256OfFile } from "../../../gpu-runner/weights/file-hash.ts";
import type { DatasetItem, TrainingRequest } from "../../../shared/training.ts";
import { unitPreviewMap } from "../pipeline/fixtures.ts";
import { trainingRequest } from "./quadratic.ts";

const cache = mkdtempSync(join(tmpdir(), "atelier-test-"));
const options = { provider: "cpu", cacheDir: cache, threads: 1 } as const;
const settings = { method: "textual-inversion", vectors: 2, initial: "red" } as const;
let loaded: TrainableModel;
let model: PictureModel;
let request: TrainingRequest;

beforeAll(async () => {
  loaded = await loadDiffusionModel("models/pocket", options);
  model = { model: loaded, tokenizers: tokenizersOf(loaded.description), previewMap: unitPreviewMap };
  const items: DatasetItem[] = [];
  for (let i = 0; i < 3; i++) {
    const path = join(cache, "picture.png");
    await sharp({ create: { width: 64, height: 64, channels: 3, background: { r: 20, g: 60 * i, b: 200 } } })
      .png()
      .toFile(path);
    const sha256 = await sha256OfFile(path);
    copyFileSync(path, join(cache, sha256));
    const split = i === 2 ? "test" : "train";
    items.push({ sha256, caption: "a zxq cube", width: 64, height: 64, split, mask: null, condition: null, concept: 0 });
  }
  const scoring = { pictures: 8, prior_pictures: 2, prior_prompts: [], steps: 2 };
  request = {
    ...trainingRequest,
    ...{ model: loaded.description.hash, settings, items, scoring, steps: 4, accumulation: 1, flip: false, ema: null },
    optimizer: { ...trainingRequest.optimizer, learning_rate: 0.05 },
  };
}, 60_000);
afterAll(async () => {
  await loaded.release();
  rmSync(cache, { recursive: true });
});

const file = (sha256: string) => join(cache, sha256);
const openStep = (asked: TrainingRequest, initial: string) =>
  methods["textual-inversion"]({
    ...{ model: loaded, tokenizers: model.tokenizers, settings: { ...settings, initial }, request: asked, start: null, options },
  });

test("its base reads the token as plain text, whatever words its vectors began as", async () => {
  const [source] = await prepareItems(model, { items: request.items, resolution: 64, flip: false, file, cacheDir: cache });
  const losses = async (asked: TrainingRequest, initial: string, adapted: boolean) => {
    const { step } = await openStep(asked, initial);
    const of: BatchSettings = { request: asked, model, alphas: trainingAlphas(model, asked.loss), captions: null };
    const plan = { items: [source!], timesteps: 2, noises: 2, captionOf: () => "a zxq cube", purpose: "scores" } as const;
    const [found] = await evaluate(step, of, plan, adapted);
    await step.release();
    return found!;
  };
  const base = await losses(request, "red", false);
  expect(await losses(request, "sphere", false)).toEqual(base);
  // A training of another token reads this caption as plain text in any case.
  expect(await losses({ ...request, concepts: [{ token: "vrb", class_prompt: null }] }, "red", true)).toEqual(base);
  expect(await losses(request, "red", true)).not.toEqual(base);
});

test("pictures and losses without its token are the base's, to the bit", async () => {
  const folder = join(cache, "training");
  mkdirSync(folder);
  const context: TrainingContext = {
    model,
    pictures: { inputs: { file, adapter: file }, adapters: new AdapterStore({ ...options, budget: 0 }), model: async () => model },
    defaults: { ...defaultsOf(loaded.description), steps: 2 },
    ...{ file, cacheDir: cache, folder, resumeFrom: null, deadline: null },
    openStep: asked => openStep(asked, settings.initial),
    openOptimiser: async (tensors, wanted) => new AdamW(tensors, wanted),
    onEvent: () => {},
    onCheckpoint: () => {},
    yieldTo: async () => {},
  };
  const { report } = await train(request, context);
  expect(report.scores).toMatchObject({ prior: { value: 1, low: 1, high: 1 }, drift: { value: 0, low: 0, high: 0 } });
  expect(report.scores!.gain.value).not.toBe(0);
  // Without the token it is the base, which gains nothing.
  expect(report.scores!.binding).toEqual(report.scores!.gain);
});
