import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { beforeAll, expect, test } from "vitest";
import { readTensorFile } from "../../../gpu-runner/adapters/read-tensors.ts";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import type { TensorF32 } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { tokenizersOf } from "../../../gpu-runner/tokenizer/model-tokenizers.ts";
import { computeTraining, type TrainablePictureModel } from "../../../gpu-runner/train/compute-training.ts";
import { sha256OfFile } from "../../../gpu-runner/weights/file-hash.ts";
import { type DatasetItem, hyperLoraNet, type TrainingEvent, type TrainingRequest, type TrainingResult } from "../../../shared/training.ts";
import { unitPreviewMap } from "../pipeline/fixtures.ts";
import { trainingRequest } from "./quadratic.ts";

const cache = mkdtempSync(join(tmpdir(), "atelier-test-"));
const options = { provider: "cpu", cacheDir: cache, threads: 1 } as const;
const settings = { method: "hyper-lora", rank: 2, fine_tune_steps: 0, fine_tune_learning_rate: 1e-3, start_from: null } as const;
const tokens = ["zxq", "vrb"] as const;
let model: TrainablePictureModel;
let request: TrainingRequest;

async function itemOf(concept: number, i: number): Promise<DatasetItem> {
  const path = join(cache, `picture-${concept}-${i}.png`);
  const background = { r: 250 * concept, g: 60 * i, b: 90 };
  await sharp({ create: { width: 64, height: 64, channels: 3, background } })
    .png()
    .toFile(path);
  const sha256 = await sha256OfFile(path);
  copyFileSync(path, join(cache, sha256));
  const split = i === 2 ? "test" : "train";
  return { sha256, caption: `a ${tokens[concept]} cube`, width: 64, height: 64, split, mask: null, condition: null, concept };
}

beforeAll(async () => {
  const loaded = await loadDiffusionModel("models/pocket", options);
  model = { model: loaded, tokenizers: tokenizersOf(loaded.description), previewMap: unitPreviewMap };
  const items = await Promise.all(
    [0, 1].map(async concept => [await itemOf(concept, 0), await itemOf(concept, 1), await itemOf(concept, 2)]),
  );
  request = {
    ...trainingRequest,
    ...{ model: loaded.description.hash, settings, items: items.flat(), steps: 3, batch_size: 2, accumulation: 1, flip: false, ema: null },
    concepts: tokens.map(token => ({ token, class_prompt: null })),
    ...{ checkpoint_every: 1, validate_every: 2, sample_every: null, sample_prompts: [] },
    scoring: { pictures: 2, prior_pictures: 0, prior_prompts: [], steps: 2 },
    optimizer: { ...trainingRequest.optimizer, learning_rate: 2e-3, clip_norm: 1, schedule: "cosine", warmup_steps: 1 },
  };
  return async () => {
    await loaded.release();
    rmSync(cache, { recursive: true });
  };
}, 60_000);

interface Run {
  result: TrainingResult;
  events: TrainingEvent[];
  folder: string;
}

/** @param stopAfter the step after which it is given up, to be resumed from the checkpoint */
async function run(name: string, asked: TrainingRequest, more: { stopAfter?: number; resumeFrom?: string } = {}): Promise<Run> {
  const folder = join(cache, name);
  mkdirSync(folder);
  const events: TrainingEvent[] = [];
  const abort = new AbortController();
  const file = (sha256: string) => join(cache, sha256);
  const result = await computeTraining(
    { request: asked, inputs: { files: {}, adapters: {} }, folder, resumeFrom: more.resumeFrom ?? null, deadline: Date.now() + 3_600_000 },
    {
      model,
      options,
      pictures: { inputs: { file, adapter: file }, adapters: new AdapterStore({ ...options, budget: 0 }), model: async () => model },
      onEvent: event => {
        events.push(event);
        if (event.type === "step" && event.step === more.stopAfter) abort.abort(new Error("given up"));
      },
      onCheckpoint: () => {},
      yieldTo: async () => {},
      signal: abort.signal,
    },
  );
  return { result, events, folder };
}

function loraOf({ folder }: Run, token: string): Promise<ReadonlyMap<string, TensorF32>> {
  return readTensorFile(join(folder, "result", token, "kohya/lora.safetensors"));
}

/** Greatest absolute difference between two LoRAs of the same tensors. */
function difference(a: ReadonlyMap<string, TensorF32>, b: ReadonlyMap<string, TensorF32>): number {
  expect([...a.keys()]).toEqual([...b.keys()]);
  return Math.max(...[...a].flatMap(([name, { data }]) => Array.from(data, (value, i) => Math.abs(value - b.get(name)!.data[i]!))));
}

test("each concept's LoRA is trained on from its prediction, and whatever step it is interrupted at, the files are the same", async () => {
  const tuned = { ...request, settings: { ...settings, fine_tune_steps: 2 } };
  const whole = await run("whole", tuned);
  const steps = whole.events.flatMap(event => (event.type === "step" ? [event] : []));
  expect(steps.map(({ step, steps: all }) => [step, all])).toEqual([1, 2, 3, 4, 5, 6, 7].map(step => [step, 7]));
  expect(steps.slice(3).map(({ learning_rate }) => learning_rate)).toEqual([1e-3, 1e-3, 1e-3, 1e-3]);
  expect(whole.result.report.steps).toBe(7);
  expect(whole.result.report.scores!.gain.value).toBeGreaterThan(0);
  for (const stopAfter of [2, 3, 4, 6]) {
    await expect(run(`cut-${stopAfter}`, tuned, { stopAfter })).rejects.toThrow("given up");
    const resumeFrom = join(cache, `cut-${stopAfter}`, "checkpoint.safetensors");
    const again = await run(`again-${stopAfter}`, tuned, { resumeFrom });
    expect(again.events.filter(({ type }) => type === "step")).toHaveLength(7 - stopAfter);
    expect(again.result.report.losses).toEqual(whole.result.report.losses);
    const hashes = ({ result }: Run) => result.files.filter(({ path }) => path !== "report.json").map(({ path, sha256 }) => [path, sha256]);
    expect(hashes(again)).toEqual(hashes(whole));
  }
}, 120_000);

test("a trained net predicts the LoRA of a concept that it knows as before, and of a new one from its pictures, to be trained on", async () => {
  const trained = await run("trained", request);
  const net = trained.result.files.find(({ path }) => path === hyperLoraNet)!;
  copyFileSync(join(trained.folder, "result", hyperLoraNet), join(cache, net.sha256));
  const goesOn = {
    ...request,
    settings: { ...settings, start_from: net.sha256 },
    concepts: [{ token: "new", class_prompt: null }, request.concepts[1]!],
    steps: 0,
  };
  const predicted = await run("predicted", goesOn);
  expect(predicted.result.report.steps).toBe(0);
  expect(difference(await loraOf(predicted, "vrb"), await loraOf(trained, "vrb"))).toBe(0);
  const [own, theirs] = [await loraOf(predicted, "new"), await loraOf(trained, "zxq")];
  expect(difference(own, theirs)).toBeGreaterThan(1e-6);
  const again = await readTensorFile(join(predicted.folder, "result", hyperLoraNet));
  const before = await readTensorFile(join(trained.folder, "result", hyperLoraNet));
  expect([...again].filter(([name, { data }]) => name !== "codes" && data.some((value, i) => value !== before.get(name)!.data[i]))).toEqual(
    [],
  );
  const tuned = await run("tuned", { ...goesOn, settings: { ...goesOn.settings, fine_tune_steps: 2 } });
  expect(tuned.result.report.steps).toBe(4);
  expect(difference(await loraOf(tuned, "new"), own)).toBeGreaterThan(1e-4);
  const other = run("other-rank", { ...goesOn, settings: { ...goesOn.settings, rank: 4 } });
  await expect(other).rejects.toThrow("settings.rank: expected 2, which the net predicts, got 4");
  const bare = run("no-pictures", { ...goesOn, concepts: [...goesOn.concepts, { token: "none", class_prompt: null }] });
  await expect(bare).rejects.toThrow("concept 2: expected at least one picture to predict from, got none");
}, 120_000);
