import { copyFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { expect, test } from "vitest";
import { openAdapter } from "../../../gpu-runner/adapters/registry.ts";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import type { PictureModel } from "../../../gpu-runner/pipeline/context.ts";
import { tokenizersOf } from "../../../gpu-runner/tokenizer/model-tokenizers.ts";
import type { TrainingContext } from "../../../gpu-runner/train/context.ts";
import { methods } from "../../../gpu-runner/train/methods/index.ts";
import { AdamW } from "../../../gpu-runner/train/optimizer.ts";
import { makePicture, ownRequest } from "../../../gpu-runner/train/own-pictures.ts";
import { ownUse } from "../../../gpu-runner/train/own-use.ts";
import { train } from "../../../gpu-runner/train/trainer.ts";
import { sha256OfFile } from "../../../gpu-runner/weights/file-hash.ts";
import type { DatasetItem, TrainingRequest } from "../../../shared/training.ts";
import { unitPreviewMap } from "../pipeline/fixtures.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { trainingRequest } from "./quadratic.ts";

test("a LoRA on the pocket model learns four pictures, resumes bit-equal, and its exports reload", { timeout: 300_000 }, async () => {
  const cache = temporaryFolder();
  const options = { provider: "cpu", cacheDir: cache, threads: 1 } as const;
  const loaded = await loadDiffusionModel("models/pocket", options);
  const tokenizers = tokenizersOf(loaded.description);
  const model: PictureModel = { model: loaded, tokenizers, previewMap: unitPreviewMap };
  const items: DatasetItem[] = [];
  for (let i = 0; i < 4; i++) {
    const path = join(cache, "picture.png");
    const background = { r: 250, g: 20 * i, b: 60 };
    await sharp({ create: { width: 64, height: 64, channels: 3, background } })
      .png()
      .toFile(path);
    const sha256 = await sha256OfFile(path);
    copyFileSync(path, join(cache, sha256));
    const split = i === 3 ? "test" : "train";
    items.push({ sha256, caption: "a zxq cube", width: 64, height: 64, split, mask: null, condition: null, concept: 0 });
  }
  const request: TrainingRequest = {
    ...trainingRequest,
    model: loaded.description.hash,
    settings: { method: "lora", rank: 4, alpha: 4, targets: ["attention"], text_encoder: true, dora: false, start_from: null },
    items,
    steps: 8,
    accumulation: 1,
    flip: false,
    ema: null,
    checkpoint_every: 4,
    validate_every: 4,
    optimizer: { ...trainingRequest.optimizer, learning_rate: 2e-3, clip_norm: 1, weight_decay: 0.01 },
  };
  const context = (name: string, changes: Partial<TrainingContext>): TrainingContext => {
    mkdirSync(join(cache, name));
    const file = (sha256: string) => join(cache, sha256);
    const { settings } = request;
    if (settings.method !== "lora") throw new Error("expected a LoRA");
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
      cacheDir: cache,
      folder: join(cache, name),
      openStep: asked => methods.lora({ model: loaded, tokenizers, settings, request: asked, start: null, options }),
      openOptimiser: async (tensors, wanted) => new AdamW(tensors, wanted),
      onEvent: () => {},
      onCheckpoint: () => {},
      resumeFrom: null,
      yieldTo: async () => {},
      deadline: null,
      ...changes,
    };
  };
  const whole = await train(request, context("whole", {}));
  expect(whole.report.losses).toHaveLength(8);
  const losses = whole.report.validation.map(([, loss]) => loss);
  expect(losses[1]).toBeLessThan(losses[0]!);
  expect(whole.report.scores!.gain.value).toBeGreaterThan(0);
  const abort = new AbortController();
  const cut = context("cut", {
    signal: abort.signal,
    onEvent: event => event.type === "step" && event.step === 4 && abort.abort(new Error("given up")),
  });
  await expect(train(request, cut)).rejects.toThrow("given up");
  const again = await train(request, context("again", { resumeFrom: join(cache, "cut/checkpoint.safetensors") }));
  expect(again.report.losses).toEqual(whole.report.losses);
  for (const [i, { path, sha256 }] of whole.files.entries()) if (path !== "report.json") expect(again.files[i]!.sha256, path).toBe(sha256);
  const opened = await Promise.all(
    ["kohya/lora.safetensors", "diffusers/pytorch_lora_weights.safetensors"].map(path =>
      openAdapter("lora", { hash: `sha256:${"0".repeat(64)}`, path: join(cache, "whole/result", path), base: loaded, options }),
    ),
  );
  const pairs = opened.map(({ changes }) =>
    changes.map(({ component, name, lowRank }) => [component, name, lowRank!.down, lowRank!.up, lowRank!.scale]),
  );
  expect(pairs[0]!.length).toBeGreaterThan(20);
  expect(new Set(pairs[0])).toEqual(new Set(pairs[1]));
  const pictures: Buffer[] = [];
  for (const path of ["kohya/lora.safetensors", "diffusers/pytorch_lora_weights.safetensors"]) {
    const own = context(`picture-${pictures.length}`, {});
    const adapter = await ownUse(request, "lora", join(cache, "whole/result"), [path], 0);
    const { bytes } = await makePicture(own, ownRequest(request, own, { prompt: "a zxq cube", seed: 3, adapters: [adapter.use] }), [
      adapter,
    ]);
    pictures.push(await sharp(bytes).raw().toBuffer());
  }
  const [kohya, diffusers] = pictures as [Buffer, Buffer];
  expect(Math.max(...kohya.map((value, i) => Math.abs(value - diffusers[i]!)))).toBeLessThanOrEqual(1);
  await loaded.release();
});
