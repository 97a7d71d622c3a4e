import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { expect, test } from "vitest";
import { AdapterStore } from "../../../gpu-runner/adapters/store.ts";
import type { TrainableModel } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { defaultsOf } from "../../../gpu-runner/model-defaults.ts";
import { readModelRegistry } from "../../../gpu-runner/model-registry.ts";
import type { PictureContext, PictureModel } from "../../../gpu-runner/pipeline/context.ts";
import { runPicture } from "../../../gpu-runner/pipeline/run-picture.ts";
import { tokenizersOf } from "../../../gpu-runner/tokenizer/model-tokenizers.ts";
import { exportResult } from "../../../gpu-runner/train/export/index.ts";
import { heldBytes, requireRoom } from "../../../gpu-runner/train/methods/dreambooth-room.ts";
import { methods } from "../../../gpu-runner/train/methods/index.ts";
import { ownUse } from "../../../gpu-runner/train/own-use.ts";
import { manifestOf } from "../../../scripts/model-manifest.ts";
import { ModelStore } from "../../../scripts/model-store.ts";
import { detectAdapter } from "../../../shared/adapter-detection.ts";
import { bytesSource } from "../../../shared/adapters/byte-source.ts";
import { ENGINE_VERSION } from "../../../shared/engine.ts";
import { type AdapterUse, pictureRequestSchema, plainPicture } from "../../../shared/picture.ts";
import type { TrainingRequest } from "../../../shared/training.ts";
import { unitPreviewMap } from "../pipeline/fixtures.ts";
import { goldens } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { trainingRequest } from "./quadratic.ts";

const settings = { method: "dreambooth", text_encoder: true, prior_pictures: 0, prior_steps: 1, extract_rank: null } as const;
const request: TrainingRequest = { ...trainingRequest, settings };

/** As much as a training moves weights, and so little that pictures stay pictures. */
function shiftWeights(values: Float32Array): void {
  for (let i = 0; i < values.length; i++) values[i]! += 0.02 * Math.sin(i);
}

async function pixelsOf(model: TrainableModel, cacheDir: string, adapter?: { use: AdapterUse; path: string }): Promise<Buffer> {
  const prepared: PictureModel = { model, tokenizers: tokenizersOf(model.description), previewMap: unitPreviewMap };
  const context: PictureContext = {
    inputs: { file: sha256 => sha256, adapter: () => adapter!.path },
    adapters: new AdapterStore({ provider: "cpu", cacheDir, threads: 1, budget: 0 }),
    model: async () => prepared,
  };
  const picture = pictureRequestSchema.parse({
    ...{ ...plainPicture, ...defaultsOf(model.description), engine_version: ENGINE_VERSION, model: model.description.hash },
    ...{ prompt: "a red fox", seed: 5, steps: 2, width: 64, height: 64, format: "png", adapters: adapter ? [adapter.use] : [] },
  });
  const { bytes } = await runPicture(context, picture, {});
  return sharp(bytes).removeAlpha().raw().toBuffer();
}

function difference(a: Buffer, b: Buffer): number {
  return Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));
}

test.each(["models/sd15", "models/sdxl", "models/sd21", "single/sd15.safetensors", "single/sdxl.safetensors", "single/sd21.safetensors"])(
  "a trained %s is served alike as its base's adapter and as a model of its own",
  async base => {
    const cacheDir = temporaryFolder();
    const options = { provider: "cpu", cacheDir, threads: 1 } as const;
    const model = await loadDiffusionModel(join(goldens, base), options);
    const {
      step,
      base: weights,
      writeModel,
    } = await methods.dreambooth({ model, tokenizers: [], settings, request, start: null, options });
    const { tensors } = step;
    shiftWeights(tensors.values);
    const folder = join(cacheDir, "result");
    mkdirSync(folder);
    const list = tensors.list.map(({ name }) => ({ name, ...tensors.value(name) }));
    const exported = exportResult({
      folder,
      request,
      description: model.description,
      tensors: list,
      base: weights!,
      predicted: null,
      metadata: {},
    });
    const adapter = await ownUse(request, exported.kind, folder, exported.adapters[0]!.files, 0);
    const source = bytesSource(readFileSync(adapter.path));
    const detected = await detectAdapter([{ path: "full.safetensors", source }]);
    expect(detected.kind).toBe("lora");
    const paths = writeModel!(folder);
    await step.release();

    const place = join(folder, paths.includes("model/model.safetensors") ? "model/model.safetensors" : "model");
    const manifest = await manifestOf(place, { name: "trained" });
    const store = new ModelStore(cacheDir, join(cacheDir, "models.json"));
    store.add({ name: manifest.name, hash: manifest.hash, path: await store.locate(place) });
    const [registered] = readModelRegistry(join(cacheDir, "models.json"));
    const trained = await loadDiffusionModel(registered!.path, options);
    expect(trained.description.hash).toBe(registered!.hash);

    const asModel = await pixelsOf(trained, cacheDir);
    expect(difference(asModel, await pixelsOf(model, cacheDir, adapter))).toBeLessThanOrEqual(1);
    expect(difference(asModel, await pixelsOf(model, cacheDir))).toBeGreaterThan(8);
    await trained.release();
    if (paths.includes("single-file/model.safetensors")) {
      const single = await loadDiffusionModel(join(folder, "single-file/model.safetensors"), options);
      expect(difference(await pixelsOf(single, cacheDir), asModel)).toBeLessThanOrEqual(1);
      await single.release();
    } else expect(base).toContain("single/");
    await model.release();
  },
  120_000,
);

test("a training that cannot fit is refused before it begins, with what it would hold and what there is", async () => {
  const cacheDir = temporaryFolder();
  const model = await loadDiffusionModel(join(goldens, "models/sd15"), { provider: "cpu", cacheDir, threads: 1 });
  const shapes = [...model.unet.shapes.values(), ...model.textEncoders[0]!.shapes.values()];
  const elements = shapes.reduce((sum, shape) => sum + shape.reduce((product, dim) => product * dim, 1), 0);
  // Value, gradient, two moments and the best value; an average.
  expect(heldBytes(model, settings, { ...request, ema: null })).toBe(20 * elements);
  expect(heldBytes(model, settings, { ...request, ema: 0.9 })).toBe(24 * elements);
  const small = { ...request, optimizer: { ...request.optimizer, moments: "8-bit" as const } };
  expect(heldBytes(model, settings, { ...small, ema: null })).toBe(14 * elements);
  const room = { memory: 18 * elements, file: 4 * elements };
  expect(() => requireRoom(model, settings, small, room)).not.toThrow();
  const short = { ...room, file: 4 * elements - 1 };
  expect(() => requireRoom(model, settings, small, short)).toThrow("settings.extract_rank: expected a rank, since the full difference has");
  expect(() => requireRoom(model, { ...settings, extract_rank: 4 }, small, short)).not.toThrow();
  expect(() => requireRoom(model, settings, request, { ...room, memory: 10 * elements })).toThrow(
    /expected a dreambooth whose .* fit into the runner's 0.0 GB, got 0.0 GB/,
  );
  await model.release();
});
