import { join } from "node:path";
import { expect, test } from "vitest";
import { readTensorFile } from "../../../../gpu-runner/adapters/read-tensors.ts";
import { withTensorFile } from "../../../../gpu-runner/adapters/tensor-file.ts";
import type { TensorF32 } from "../../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../../gpu-runner/load.ts";
import { loraLayouts } from "../../../../gpu-runner/train/export/lora.ts";
import { methods, type StartFile } from "../../../../gpu-runner/train/methods/index.ts";
import type { TrainedTensors } from "../../../../gpu-runner/train/trained-tensors.ts";
import type { MethodSettingsOf } from "../../../../shared/training.ts";
import { goldenModel } from "../../support/model-folder.ts";
import { temporaryFolder } from "../../support/temporary.ts";
import { trainingRequest } from "../quadratic.ts";

async function read(path: string): Promise<StartFile> {
  return { tensors: await readTensorFile(path), metadata: await withTensorFile(path, async ({ metadata }) => metadata) };
}

const plain: MethodSettingsOf<"lora"> = {
  ...{ method: "lora", rank: 3, alpha: 1.5, targets: ["attention", "convolution"], text_encoder: true, dora: false, start_from: null },
};

test.each([false, true])(
  "a training goes on from each layout of a LoRA (DoRA %s) with what it changes, at an alpha of its own",
  async dora => {
    const cacheDir = temporaryFolder();
    const options = { provider: "cpu", cacheDir, threads: 1 } as const;
    const model = await loadDiffusionModel(goldenModel, options);
    const settings = { ...plain, dora };
    const open = async (changes: Partial<typeof settings>, start: StartFile | null): Promise<TrainedTensors> => {
      const { step } = await methods.lora({
        model,
        tokenizers: [],
        settings: { ...settings, ...changes },
        request: trainingRequest,
        start,
        options,
      });
      await step.release();
      return step.tensors;
    };
    const before = await open({}, null);
    before.values.forEach((_, i) => {
      before.values[i]! += Math.sin(i);
    });
    const tensors = before.list.map(({ name }) => ({ name, ...before.value(name) }));
    const result = { tensors, rank: 3, alpha: 1.5, hasTwoTextEncoders: false, metadata: {} };
    loraLayouts.kohya(cacheDir, result);
    loraLayouts.diffusers(cacheDir, result);
    const scaled = ({ name, shape }: { name: string; shape: readonly number[] }, by: number): TensorF32 => {
      const { data } = before.value(name);
      return { data: name.endsWith("lora_B.weight") ? data.map(value => by * value) : data, shape };
    };
    for (const path of ["kohya/lora.safetensors", "diffusers/pytorch_lora_weights.safetensors"]) {
      const start = await read(join(cacheDir, path));
      for (const alpha of [1.5, 3]) {
        const after = await open({ alpha }, start);
        // W + alpha / rank up down is the same with half of `up` at twice the alpha.
        for (const tensor of before.list) expect(after.value(tensor.name), `${path} ${tensor.name}`).toEqual(scaled(tensor, 1.5 / alpha));
      }
      await expect(open({ rank: 4 }, start)).rejects.toThrow(/settings.start_from: expected unet\..*lora_A.weight \[4,.*got \[3,/);
      await expect(open({ text_encoder: false }, start)).rejects.toThrow("expected layers that are trained, got textEncoder/");
      await expect(open({ targets: ["attention", "convolution", "feed-forward"] }, start)).rejects.toThrow("got [none]");
    }
    await expect(open({}, { tensors: new Map([["other", { data: new Float32Array(1), shape: [1] }]]), metadata: {} })).rejects.toThrow(
      "settings.start_from: expected the pairs of a LoRA of this base, got other",
    );
    await model.release();
  },
);
