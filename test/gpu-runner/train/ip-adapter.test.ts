import { copyFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import sharp from "sharp";
import { expect, test } from "vitest";
import { openImageEncoder } from "../../../gpu-runner/adapters/ip-adapter/image-encoder.ts";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import type { PictureModel } from "../../../gpu-runner/pipeline/context.ts";
import { tokenizersOf } from "../../../gpu-runner/tokenizer/model-tokenizers.ts";
import type { TrainingContext } from "../../../gpu-runner/train/context.ts";
import { methods } from "../../../gpu-runner/train/methods/index.ts";
import { newIpConfig, referenceFeatures } from "../../../gpu-runner/train/methods/ip-adapter-training.ts";
import { AdamW } from "../../../gpu-runner/train/optimizer.ts";
import { makePicture, type OwnAdapter, ownRequest } from "../../../gpu-runner/train/own-pictures.ts";
import { ownUse } from "../../../gpu-runner/train/own-use.ts";
import { train } from "../../../gpu-runner/train/trainer.ts";
import { sha256OfFile } from "../../../gpu-runner/weights/file-hash.ts";
import type { DatasetItem, TrainingRequest } from "../../../shared/training.ts";
import { unitPreviewMap } from "../pipeline/fixtures.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { trainingRequest } from "./quadratic.ts";

const clip = "models/pocket-clip";

test.each(["base", "plus"] as const)(
  "an IP-Adapter (%s) is trained, resumes bit-equal and serves with its encoder",
  { timeout: 300_000 },
  async variant => {
    const cache = temporaryFolder();
    const options = { provider: "cpu", cacheDir: cache, threads: 1 } as const;
    const loaded = await loadDiffusionModel("models/pocket", options);
    const tokenizers = tokenizersOf(loaded.description);
    const model: PictureModel = { model: loaded, tokenizers, previewMap: unitPreviewMap };
    const items = await Promise.all([0, 1, 2, 3].map(i => item(cache, i)));
    const settings = { method: "ip-adapter", variant, tokens: 2, picture_dropout: 0.3, image_encoder: `sha256:${"1".repeat(64)}` } as const;
    const request: TrainingRequest = {
      ...trainingRequest,
      ...{ model: loaded.description.hash, settings, items, steps: 4, accumulation: 1, flip: true, ema: null },
      ...{ checkpoint_every: 2, validate_every: 2, sample_every: null },
      optimizer: { ...trainingRequest.optimizer, learning_rate: 1e-2, clip_norm: 1, weight_decay: 0.01 },
    };
    const file = (sha256: string) => join(cache, sha256);
    const context = (name: string, changes: Partial<TrainingContext>): TrainingContext => {
      mkdirSync(join(cache, name));
      return {
        model,
        pictures: { inputs: { file, adapter: file }, adapters: new AdapterStore({ ...options, budget: 0 }), model: async () => model },
        defaults: {
          ...{ width: 64, height: 64, steps: 2, guidance_scale: 3, guidance_rescale: 0 },
          ...{ sampler: "ddim", sampler_options: {}, clip_skip: 0 },
        },
        ...{ file, cacheDir: cache, folder: join(cache, name) },
        openStep: asked =>
          methods["ip-adapter"]({ model: loaded, tokenizers, settings, request: asked, start: null, imageEncoder: clip, options }),
        openOptimiser: async (tensors, wanted) => new AdamW(tensors, wanted),
        ...{ onEvent: () => {}, onCheckpoint: () => {}, resumeFrom: null, yieldTo: async () => {}, deadline: null },
        ...changes,
      };
    };
    const whole = await train(request, context("whole", {}));
    expect(whole.report.losses).toHaveLength(4);
    expect(whole.report.scores).not.toBeNull();
    expect(whole.adapters).toEqual([
      {
        suffix: null,
        files: [
          "ip-adapter/ip_adapter.safetensors",
          "ip-adapter/image_encoder/config.json",
          "ip-adapter/image_encoder/model.safetensors",
          "ip-adapter/image_encoder/preprocessor_config.json",
        ],
      },
    ]);
    const abort = new AbortController();
    const cut = context("cut", {
      signal: abort.signal,
      onEvent: event => event.type === "step" && event.step === 2 && abort.abort(new Error("given up")),
    });
    await expect(train(request, cut)).rejects.toThrow("given up");
    const again = await train(request, context("again", { resumeFrom: join(cache, "cut/checkpoint.safetensors") }));
    expect(again.files[0]).toEqual(whole.files[0]);

    const draw = async ({ path, use }: OwnAdapter, image: string, weight = 1): Promise<Buffer> => {
      const own = context(crypto.randomUUID(), {});
      if (use.kind !== "ip-adapter") throw new Error("expected an IP-Adapter");
      const shown = { path, use: { ...use, images: [{ image, weight: 1 }], weight } };
      const { bytes } = await makePicture(own, ownRequest(request, own, { prompt: "a cube", seed: 3, adapters: [shown.use] }), [shown]);
      return sharp(bytes).raw().toBuffer();
    };
    const trained = await ownUse(request, "ip-adapter", join(cache, "whole/result"), whole.adapters[0]!.files, 0);
    // As a grant brings it: paths without the folder that all have in common.
    const served = join(cache, "served");
    for (const path of whole.adapters[0]!.files) {
      const to = join(served, path.replace("ip-adapter/", ""));
      mkdirSync(dirname(to), { recursive: true });
      copyFileSync(join(cache, "whole/result", path), to);
    }
    const [one, other] = [items[0]!.sha256, items[3]!.sha256];
    const picture = await draw(trained, one);
    expect(difference(picture, await draw({ ...trained, path: served }, one))).toBeLessThanOrEqual(1);
    expect(difference(picture, await draw(trained, other))).toBeGreaterThan(1);
    expect(difference(picture, await draw(trained, one, 0))).toBeGreaterThan(1);
    await loaded.release();
  },
);

test("features are the encoder's, of nothing zeros or those of zero pixel values", async () => {
  const cache = temporaryFolder();
  const encoder = await openImageEncoder(clip, { provider: "cpu", cacheDir: cache, threads: 1 });
  const zeros = { data: new Float32Array(3 * 64 * 64), shape: [1, 3, 64, 64] };
  const { penultimate } = await encoder.encode(zeros);
  expect(await referenceFeatures(encoder, "base")(null)).toEqual({ data: new Float32Array(64), shape: [1, 64] });
  const nothing = await referenceFeatures(encoder, "plus")(null);
  expect(nothing.shape).toEqual([1, 65, 96]);
  expect(nothing.data).toEqual(penultimate.data);
  await encoder.release();
});

test.each([
  // Ye et al.'s releases of plus for SD 1 and SDXL.
  [768, 1280, { width: 768, heads: 12, attentionWidth: 768, feedForwardWidth: 3072, imageWidth: 1280, layers: 4 }],
  [2048, 1280, { width: 1280, heads: 20, attentionWidth: 1280, feedForwardWidth: 5120, imageWidth: 1280, layers: 4 }],
])("plus over text states of width %i is as released", async (crossAttentionDim, width, resampler) => {
  const unet = { config: { crossAttentionDim } } as Parameters<typeof newIpConfig>[0]["unet"];
  expect(newIpConfig({ unet }, { variant: "plus", tokens: 16 }, { width, projectionWidth: 1024 })).toEqual({
    ...{ variant: "plus", width: crossAttentionDim, tokens: 16, resampler },
  });
});

async function item(folder: string, i: number): Promise<DatasetItem> {
  const path = join(folder, `picture-${i}.png`);
  const background = { r: 250 - 70 * i, g: 20 * i, b: 60 + 60 * i };
  await sharp({ create: { width: 64, height: 64, channels: 3, background } })
    .png()
    .toFile(path);
  const sha256 = await sha256OfFile(path);
  copyFileSync(path, join(folder, sha256));
  const split = i === 3 ? "test" : "train";
  return { sha256, caption: "a cube", width: 64, height: 64, split, mask: null, condition: null, concept: 0 };
}

function difference(a: Buffer, b: Buffer): number {
  return Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));
}
