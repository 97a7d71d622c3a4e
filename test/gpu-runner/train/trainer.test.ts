import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { beforeAll, expect, test, vi } from "vitest";
import { openAdapter } from "../../../gpu-runner/adapters/registry.ts";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import type { PictureModel } from "../../../gpu-runner/pipeline/context.ts";
import { tokenizersOf } from "../../../gpu-runner/tokenizer/model-tokenizers.ts";
import type { TrainingContext } from "../../../gpu-runner/train/context.ts";
import { train } from "../../../gpu-runner/train/trainer.ts";
import { sha256OfFile } from "../../../gpu-runner/weights/file-hash.ts";
import type { DatasetItem, TrainingEvent, TrainingRequest } from "../../../shared/training.ts";
import { unitPreviewMap } from "../pipeline/fixtures.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { plainAdamW, quadraticStep, trainingRequest } from "./quadratic.ts";

const shared = mkdtempSync(join(tmpdir(), "atelier-test-"));
let model: PictureModel;
let request: TrainingRequest;

beforeAll(async () => {
  const loaded = await loadDiffusionModel("models/pocket", { provider: "cpu", cacheDir: shared });
  model = { model: loaded, tokenizers: tokenizersOf(loaded.description), previewMap: unitPreviewMap };
  const items: DatasetItem[] = [];
  for (let i = 0; i < 4; i++) {
    const pixels = Buffer.from(Array.from({ length: 64 * 64 * 3 }, (_, k) => (k * (i + 3)) % 256));
    const path = join(shared, "picture.png");
    await sharp(pixels, { raw: { width: 64, height: 64, channels: 3 } })
      .png()
      .toFile(path);
    const sha256 = await sha256OfFile(path);
    copyFileSync(path, join(shared, sha256));
    const split = i === 3 ? "test" : "train";
    items.push({ sha256, caption: `a zxq toy ${i}`, width: 64, height: 64, split, mask: null, condition: null, concept: 0 });
  }
  // So fast that a few steps show in 8-bit pictures.
  const optimizer = { ...trainingRequest.optimizer, learning_rate: 0.5 };
  request = {
    ...trainingRequest,
    optimizer,
    model: loaded.description.hash,
    items,
    resolution: 64,
    sample_prompts: ["a zxq"],
    sample_every: 3,
  };
  return async () => {
    await loaded.release();
    rmSync(shared, { recursive: true, force: true });
  };
}, 60_000);

const module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";

const tensors = [
  { name: `${module}.lora_A.weight`, shape: [4, 128], group: "main" },
  { name: `${module}.lora_B.weight`, shape: [128, 4], group: "main" },
] as const;

function contextIn(folder: string, events: TrainingEvent[], changes: Partial<TrainingContext> = {}): TrainingContext {
  mkdirSync(folder, { recursive: true });
  const file = (sha256: string) => join(shared, sha256);
  const options = { provider: "cpu", cacheDir: shared, threads: 1 } as const;
  return {
    model,
    pictures: { inputs: { file, adapter: file }, adapters: new AdapterStore({ ...options, budget: 0 }), model: async () => model },
    defaults: {
      width: 64,
      height: 64,
      steps: 2,
      guidance_scale: 3,
      guidance_rescale: 0,
      sampler: "ddim",
      sampler_options: {},
      clip_skip: 0,
    },
    file,
    cacheDir: shared,
    folder,
    async openStep() {
      const step = quadraticStep([4, 8, 8], [], tensors);
      // Latents are fewer than these tensors' elements, so that the second one keeps what it starts as.
      step.tensors.values.fill(0.5, 512);
      return { step };
    },
    openOptimiser: async tensors => plainAdamW(tensors),
    onEvent: event => void events.push(event),
    onCheckpoint: () => {},
    resumeFrom: null,
    yieldTo: async () => {},
    deadline: null,
    ...changes,
  };
}

test("a training ends with files that the product opens, scores and events; one that was interrupted ends with the same files", async () => {
  const folder = temporaryFolder();
  const events: TrainingEvent[] = [];
  const whole = await train(request, contextIn(join(folder, "whole"), events));
  expect(events.filter(({ type }) => type === "step")).toHaveLength(6);
  expect(events.flatMap(event => (event.type === "phase" ? [event.phase] : []))).toEqual([
    "loading",
    "caching",
    "training",
    "exporting",
    "scoring",
  ]);
  expect(events.filter(({ type }) => type === "sample")).toHaveLength(2);
  expect(events.flatMap(event => (event.type === "validation" ? [event.step] : []))).toEqual([2, 4, 6]);
  expect(whole.report).toMatchObject({ steps: 6, ended_by: "steps", trained_parameters: 1024 });
  expect(whole.report.scores!.drift.value).toBeGreaterThan(0);
  expect(whole.report.scores!.gain.value).toBeLessThan(1);
  expect(whole.report.scores!.prior).toBeNull();
  expect(whole.report.pictures).toEqual({ train: 3, validation: 1, test: 1, prior: 0, validation_is_test: true, prior_from: null });
  expect(whole.report.scoring_seconds).toBeGreaterThan(0);
  const grid = await sharp(join(folder, "whole/result/samples.png")).metadata();
  expect([grid.width, grid.height]).toEqual([64, 128]);
  const path = join(folder, "whole/result", whole.adapters[0]!.files[0]!);
  const options = { provider: "cpu", cacheDir: shared } as const;
  const { changes } = await openAdapter("lora", { hash: `sha256:${"0".repeat(64)}`, path, base: model.model, options });
  expect(changes).toHaveLength(1);

  const abort = new AbortController();
  let checkpoint = "";
  const cut = contextIn(join(folder, "cut"), [], {
    signal: abort.signal,
    onCheckpoint(saved) {
      checkpoint = saved;
    },
    onEvent: event => event.type === "step" && event.step === 4 && abort.abort(new Error("given up")),
  });
  await expect(train(request, cut)).rejects.toThrow("given up");
  const again = await train(request, contextIn(join(folder, "again"), [], { resumeFrom: checkpoint }));
  expect(again.report.losses).toEqual(whole.report.losses);
  expect(again.report.scores).toEqual(whole.report.scores);
  for (const [i, { path: name, sha256 }] of whole.files.entries())
    if (name !== "report.json") expect(again.files[i]!.sha256, name).toBe(sha256);
  expect(JSON.parse(readFileSync(join(folder, "again/result/report.json"), "utf8")).losses).toHaveLength(6);
});

test("a dry run says what it would take and leaves nothing; budget and deadline end in good order", async () => {
  const folder = temporaryFolder();
  const scoring = { ...request.scoring, prior_pictures: 2 };
  const dry = await train({ ...request, scoring, dry_run: true, steps: 500 }, contextIn(join(folder, "dry"), []));
  const unscored = { ...request, scoring: { ...scoring, pictures: 0 }, sample_every: null };
  const cheap = await train({ ...unscored, dry_run: true, steps: 500 }, contextIn(join(folder, "cheap"), []));
  expect(cheap.report.scoring_seconds).toBeGreaterThan(0);
  expect(cheap.report.scoring_seconds).toBeLessThan(dry.report.scoring_seconds!);
  expect(dry.files).toEqual([]);
  expect(dry.report.steps).toBe(500);
  expect(dry.report.seconds).toBeGreaterThanOrEqual(dry.report.seconds_per_step * 500);
  expect(dry.report.seconds_per_step).toBeGreaterThan(0);
  const budget = await train({ ...request, steps: 100_000, sample_every: null, budget_ms: 50 }, contextIn(join(folder, "budget"), []));
  expect(budget.report.ended_by).toBe("budget");
  expect(budget.report.steps).toBeLessThan(100_000);
  const late = await train({ ...request, sample_every: null }, contextIn(join(folder, "late"), [], { deadline: Date.now() - 1 }));
  expect(late.report).toMatchObject({ ended_by: "deadline", steps: 0, scores: null });
});

test("the prior is scored on the dataset's generic pictures, else on the base model's own, which are drawn once and never learned from", async () => {
  const folder = temporaryFolder();
  const asked = { ...request, scoring: { ...request.scoring, prior_pictures: 2, steps: 3 }, steps: 2, sample_every: null };
  const drawn: string[] = [];
  const run = (name: string, changes: Partial<TrainingRequest> = {}) => {
    const context = contextIn(join(folder, name), []);
    const counted = async (hash: string) => {
      drawn.push(hash);
      return context.model;
    };
    return train({ ...asked, ...changes }, { ...context, pictures: { ...context.pictures, model: counted } });
  };
  const first = await run("first");
  expect(first.report.scores!.prior!.value).toBeGreaterThan(0);
  expect(first.report.pictures).toMatchObject({ train: 3, prior: 2, prior_from: "model" });
  const pictures = drawn.length;
  drawn.length = 0;
  const again = await run("again");
  expect(again.report.scores).toEqual(first.report.scores);
  // The two of the prior are not drawn again: those of grid and drift are.
  expect(drawn.length).toBe(pictures - 2);
  const items = request.items.map((item, i): DatasetItem => (i === 2 ? { ...item, split: "prior" } : item));
  const given = await run("given", { items });
  expect(given.report.pictures).toMatchObject({ train: 2, prior: 1, prior_from: "dataset" });
  expect(given.report.scores!.prior!.value).toBeGreaterThan(0);
  const none = await run("none", { scoring: { ...asked.scoring, pictures: 0 } });
  expect(none.report.scores).toBeNull();
});

test("a deadline amid scoring leaves the result and its report, without scores", async () => {
  const deadline = Date.now() + 3_600_000;
  const clock = vi.spyOn(Date, "now");
  const late = contextIn(temporaryFolder(), [], {
    deadline,
    onEvent: event => {
      if (event.type === "phase" && event.phase === "scoring") clock.mockReturnValue(deadline + 1);
    },
  });
  const result = await train({ ...request, sample_every: null }, late).finally(() => clock.mockRestore());
  expect(result.report).toMatchObject({ steps: 6, ended_by: "steps", scores: null });
  expect(result.files.map(({ path }) => path)).toContain("report.json");
});

test("what others take between the steps is none of the training's time", async () => {
  const yieldTo = () => new Promise<void>(resolve => setTimeout(resolve, 100));
  const { report } = await train({ ...request, sample_every: null, sample_prompts: [] }, contextIn(temporaryFolder(), [], { yieldTo }));
  expect(report.seconds).toBeLessThan(6 * 0.1);
});

test("DreamBooth makes its prior pictures once, and its result is a LoRA of the difference", async () => {
  const folder = temporaryFolder();
  const settings = { method: "dreambooth", text_encoder: false, prior_pictures: 2, prior_steps: 2, extract_rank: 2 } as const;
  const events: TrainingEvent[] = [];
  const scoring = { ...request.scoring, prior_pictures: 2 };
  const own = { ...request, settings, scoring, steps: 2, sample_every: null };
  const openStep = async () => ({
    step: quadraticStep([4, 8, 8], [], [{ name: `${module}.weight`, shape: [128, 128], group: "main" }]),
    base: () => new Float32Array(128 * 128),
  });
  const first = await train(own, contextIn(join(folder, "first"), events, { openStep }));
  expect(events).toContainEqual({ type: "phase", phase: "prior" });
  expect(first.report.scores!.prior!.value).toBeGreaterThan(0);
  expect(first.adapters).toEqual([{ suffix: null, files: ["kohya/lora.safetensors"] }]);
  const seen: string[] = [];
  const pictures = {
    ...contextIn(folder, []).pictures,
    async model(hash: string) {
      seen.push(hash);
      return model;
    },
  };
  await train(own, contextIn(join(folder, "second"), [], { openStep, pictures }));
  // Grid and drift alone.
  expect(seen).toHaveLength(2 + 8);
});
