/** Trainings whose activations are computed again: the same steps as those that keep them, of every kind of graph that is trained. */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { beforeAll, expect, test } from "vitest";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { tokenizersOf } from "../../../gpu-runner/tokenizer/model-tokenizers.ts";
import { computeTraining, type TrainablePictureModel } from "../../../gpu-runner/train/compute-training.ts";
import { sha256OfFile } from "../../../gpu-runner/weights/file-hash.ts";
import type { DatasetItem, TrainingReport, TrainingRequest } from "../../../shared/training.ts";
import { unitPreviewMap } from "../pipeline/fixtures.ts";
import { trainingRequest } from "./quadratic.ts";

const cache = mkdtempSync(join(tmpdir(), "atelier-test-"));
const options = { provider: "cpu", cacheDir: cache, threads: 1 } as const;
const file = (sha256: string): string => join(cache, sha256);
let model: TrainablePictureModel;
let items: DatasetItem[];

beforeAll(async () => {
  const loaded = await loadDiffusionModel("models/pocket", options);
  model = { model: loaded, tokenizers: tokenizersOf(loaded.description), previewMap: unitPreviewMap };
  const path = join(cache, "picture.png");
  await sharp({ create: { width: 64, height: 64, channels: 3, background: { r: 250, g: 40, b: 90 } } })
    .png()
    .toFile(path);
  const sha256 = await sha256OfFile(path);
  copyFileSync(path, file(sha256));
  items = [{ sha256, caption: "a zxq cube", width: 64, height: 64, split: "train", mask: null, condition: sha256, concept: 0 }];
  return async () => {
    await loaded.release();
    rmSync(cache, { recursive: true });
  };
}, 60_000);

async function reportOf(name: string, changes: Partial<TrainingRequest>): Promise<TrainingReport> {
  const folder = join(cache, name);
  mkdirSync(folder);
  const request: TrainingRequest = {
    ...trainingRequest,
    ...{ model: model.model.description.hash, items, steps: 3, batch_size: 1, accumulation: 1, flip: false, ema: null },
    ...{ checkpoint_every: 10, validate_every: 10, sample_every: null, sample_prompts: [] },
    scoring: { pictures: 0, prior_pictures: 0, prior_prompts: [], steps: null },
    optimizer: { ...trainingRequest.optimizer, learning_rate: 1e-3, schedule: "constant", warmup_steps: 0 },
    ...changes,
  };
  const task = { request, inputs: { files: {}, adapters: {} }, folder, resumeFrom: null, deadline: Date.now() + 3_600_000 };
  const { report } = await computeTraining(task, {
    ...{ model, options, onEvent: () => {}, onCheckpoint: () => {}, yieldTo: async () => {}, signal: new AbortController().signal },
    pictures: { inputs: { file, adapter: file }, adapters: new AdapterStore({ ...options, budget: 0 }), model: async () => model },
  });
  return report;
}

const lora = { method: "lora", rank: 2, alpha: 2, targets: ["attention", "convolution"], dora: false, start_from: null } as const;

test.each<TrainingRequest["settings"]>([
  { ...lora, targets: [...lora.targets], text_encoder: true },
  { method: "controlnet", preprocess: null, condition_dropout: 0 },
  { method: "dreambooth", text_encoder: false, prior_pictures: 0, prior_steps: 1, extract_rank: null },
])("$method takes the same steps", async settings => {
  const [kept, again] = [
    await reportOf(`${settings.method}-kept`, { settings }),
    await reportOf(`${settings.method}-again`, { settings, gradient_checkpointing: true }),
  ];
  expect(again.losses).toHaveLength(3);
  for (const [i, [step, loss]] of again.losses.entries()) {
    expect(step).toBe(kept.losses[i]![0]);
    expect(Math.abs(loss - kept.losses[i]![1])).toBeLessThanOrEqual(1e-6 * kept.losses[i]![1]);
  }
  // The trained tensors have moved, so the gradients were no zeros.
  expect(new Set(again.losses.map(([, loss]) => loss)).size).toBe(3);
});

test("a dry run measures it", async () => {
  const settings = { ...lora, targets: [...lora.targets], text_encoder: false };
  const report = await reportOf("dry", { settings, gradient_checkpointing: true, dry_run: true });
  expect(report.seconds_per_step).toBeGreaterThan(0);
  expect(report.peak_memory_bytes).toBeGreaterThan(0);
});
