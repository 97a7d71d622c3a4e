/** What a training says of its result is what another one, which knows the exported file alone, says of it. */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { adapterDiskFiles, hashAdapterFiles } from "../../../gpu-runner/adapters/content-hash.ts";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import type { TrainableModel } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { preparePictureModel } from "../../../gpu-runner/pipeline/prepare-model.ts";
import type { TrainablePictureModel } from "../../../gpu-runner/train/compute-training.ts";
import { computeTraining } from "../../../gpu-runner/train/compute-training.ts";
import { sha256OfFile } from "../../../gpu-runner/weights/file-hash.ts";
import type { AdapterKind } from "../../../shared/adapter.ts";
import type { DatasetItem, TrainingRequest, TrainingResult } from "../../../shared/training.ts";
import { trainingRequest } from "./quadratic.ts";

const cache = mkdtempSync(join(tmpdir(), "atelier-test-"));
const options = { provider: "cpu", cacheDir: cache, threads: 1 } as const;
let loaded: TrainableModel;
let model: TrainablePictureModel;
let request: TrainingRequest;

const file = (sha256: string) => join(cache, sha256);

beforeAll(async () => {
  loaded = await loadDiffusionModel("models/pocket", options);
  model = { ...(await preparePictureModel(loaded)), model: loaded };
  const items: DatasetItem[] = [];
  for (let i = 0; i < 4; i++) {
    const path = join(cache, "picture.png");
    await sharp({ create: { width: 64, height: 64, channels: 3, background: { r: 20, g: 60 * i, b: 200 } } })
      .png()
      .toFile(path);
    const sha256 = await sha256OfFile(path);
    copyFileSync(path, file(sha256));
    const split = i === 2 ? "test" : i === 3 ? "prior" : "train";
    items.push({ sha256, caption: "a zxq cube", width: 64, height: 64, split, mask: null, condition: sha256, concept: 0 });
  }
  request = {
    ...trainingRequest,
    ...{ model: loaded.description.hash, items, steps: 2, batch_size: 2, accumulation: 1, flip: false, ema: null, sample_every: null },
    ...{ resolution: 64, sample_prompts: ["a zxq cube"], concepts: [{ token: "zxq", class_prompt: null }] },
    scoring: { pictures: 8, prior_pictures: 2, prior_prompts: [], steps: 2 },
    sampling: { steps: 2, guidance_scale: 1, guidance_rescale: 0, sampler: "ddim", sampler_options: {}, clip_skip: 0 },
    optimizer: { ...trainingRequest.optimizer, learning_rate: 0.003 },
  };
}, 60_000);
afterAll(async () => {
  await loaded.release();
  rmSync(cache, { recursive: true });
});

async function compute(asked: TrainingRequest, adapters: Record<string, string>): Promise<{ folder: string; result: TrainingResult }> {
  const folder = mkdtempSync(join(cache, "training-"));
  const adapter = (hash: string) => adapters[hash]!;
  const store = new AdapterStore({ ...options, budget: 0 });
  const task = { request: asked, inputs: { adapters, files: {} }, folder, resumeFrom: null, deadline: null };
  const result = await computeTraining(task as unknown as Parameters<typeof computeTraining>[0], {
    ...{ model, options, signal: new AbortController().signal },
    pictures: { inputs: { file, adapter }, adapters: store, model: async () => model },
    onEvent: () => {},
    onCheckpoint: () => {},
    yieldTo: async () => {},
  });
  return { folder: join(folder, "result"), result };
}

const clip = "models/pocket-clip";
const cases: { settings: TrainingRequest["settings"]; kind: AdapterKind }[] = [
  {
    settings: {
      method: "lora",
      rank: 4,
      alpha: 2,
      targets: ["attention", "convolution"],
      text_encoder: true,
      dora: false,
      start_from: null,
    },
    kind: "lora",
  },
  { settings: { method: "textual-inversion", vectors: 2, initial: "red cube" }, kind: "textual-inversion" },
  {
    settings: { method: "dreambooth", text_encoder: true, prior_pictures: 0, prior_steps: 1, extract_rank: null },
    kind: "lora",
  },
  {
    settings: { method: "hypernetwork", layer_structure: [1, 2, 1], activation: "linear", layer_norm: false, activate_output: false },
    kind: "hypernetwork",
  },
  { settings: { method: "controlnet", preprocess: null, condition_dropout: 0 }, kind: "controlnet" },
  { settings: { method: "ip-adapter", variant: "base", tokens: 2, picture_dropout: 0, image_encoder: "clip" }, kind: "ip-adapter" },
  { settings: { method: "ip-adapter", variant: "plus", tokens: 2, picture_dropout: 0, image_encoder: "clip" }, kind: "ip-adapter" },
];

test.each(cases)("$settings.method", { timeout: 120_000 }, async ({ settings, kind }) => {
  const trained = await compute({ ...request, settings }, { clip });
  const [{ files } = { files: [] as string[] }] = trained.result.adapters;
  // As a grant brings it: one file as it is, several in a folder without the part that all have in common.
  let path = join(trained.folder, files[0]!);
  if (files.length > 1) {
    path = mkdtempSync(join(cache, "served-"));
    for (const each of files) {
      const to = join(path, each.slice(each.indexOf("/") + 1));
      mkdirSync(join(to, ".."), { recursive: true });
      copyFileSync(join(trained.folder, each), to);
    }
  }
  const hash = await hashAdapterFiles(adapterDiskFiles(path));
  const asked = { ...request, settings: { method: "evaluation", adapter: hash, kind }, steps: 0 } as const;
  const { result } = await compute(asked, { [hash]: path });
  const [own, said] = [trained.result.report.scores!, result.report.scores!];
  expect(Math.abs(own.gain.value)).toBeGreaterThan(1e-4);
  for (const score of ["gain", "binding", "prior", "drift"] as const)
    for (const part of ["value", "low", "high"] as const) expect(said[score]![part], `${score} ${part}`).toBeCloseTo(own[score]![part], 4);
  expect(result).toMatchObject({ adapters: [], report: { method: "evaluation", steps: 0, trained_parameters: 0 } });
  const [losses] = result.report.picture_losses!;
  expect(1 - losses!.adapted / losses!.base).toBeCloseTo(said.gain.value, 6);
});
