import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { adapterDiskFiles } from "../../../../gpu-runner/adapters/content-hash.ts";
import { openControlNet } from "../../../../gpu-runner/adapters/controlnet/controlnet.ts";
import { openHyperNetwork } from "../../../../gpu-runner/adapters/hypernetwork.ts";
import type { PredictArgs, TensorF32, TrainableModel } from "../../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../../gpu-runner/load.ts";
import { writeTensors } from "../../../../gpu-runner/train/export/result.ts";
import type { AdapterStep } from "../../../../gpu-runner/train/methods/adapter-step.ts";
import { newControlNetConfig, openControlNetStep } from "../../../../gpu-runner/train/methods/controlnet.ts";
import { standardShape } from "../../../../gpu-runner/train/methods/hyper-lora/net.ts";
import { orthonormal } from "../../../../gpu-runner/train/methods/hyper-lora/orthonormal.ts";
import { openHyperLoraStep } from "../../../../gpu-runner/train/methods/hyper-lora.ts";
import { contextWidths, openHyperNetworkStep } from "../../../../gpu-runner/train/methods/hypernetwork.ts";
import { openIpAdapterStep } from "../../../../gpu-runner/train/methods/ip-adapter.ts";
import type { StepBatch } from "../../../../gpu-runner/train/step.ts";
import { wave } from "../../support/graph.ts";
import { goldenModel } from "../../support/model-folder.ts";

const cacheDir = mkdtempSync(join(tmpdir(), "atelier-test-"));
const options = { provider: "cpu", cacheDir, threads: 1 } as const;
let model: TrainableModel;

beforeAll(async () => {
  model = await loadDiffusionModel(goldenModel, options);
});
afterAll(async () => {
  await model.release();
  rmSync(cacheDir, { recursive: true });
});

/** Two items of 8x8 latents, of the concepts 1 and 0, with a control map and picture features of width 12. */
function twoItems(): StepBatch {
  const shape = [2, model.description.latentChannels, 8, 8];
  const pixels = 8 * model.description.vaeScaleFactor;
  return {
    sample: wave(shape, 1),
    target: wave(shape, 2),
    lossWeights: { data: new Float32Array(128).fill(0.5), shape: [2, 1, 8, 8] },
    timesteps: [400, 30],
    inputIds: [[], []],
    encoderHiddenStates: wave([2, 5, model.unet.config.crossAttentionDim], 3),
    added: null,
    controlMap: wave([2, 3, pixels, pixels], 4),
    imageEmbeds: wave([2, 12], 5),
    concepts: [1, 0],
    references: null,
  };
}

async function total(step: AdapterStep, adapted: boolean): Promise<number> {
  return (await step.losses(twoItems(), adapted)).reduce((a, b) => a + b, 0);
}

/** The central difference of the loss along the gradient (one to a side has the curvature too), over what the gradient predicts; it ends a step down. */
async function slopeRatio(step: AdapterStep): Promise<number> {
  const before = await total(step, true);
  const reported = (await step.gradients(twoItems())).reduce((a, b) => a + b, 0);
  expect(reported).toBeCloseTo(before, 5);
  const { values, gradients } = step.tensors;
  const square = gradients.reduce((sum, value) => sum + value * value, 0);
  const length = (1e-3 * before) / square;
  const lossAfter = async (distance: number): Promise<number> => {
    for (let i = 0; i < values.length; i++) values[i]! += distance * gradients[i]!;
    return total(step, true);
  };
  const above = await lossAfter(length);
  const below = await lossAfter(-2 * length);
  return (above - below) / (2 * length * square);
}

const open = {
  hypernetwork: () => {
    const form = { structure: [1, 2, 1], activation: "tanh", layerNorm: false, activateOutput: false, dropout: null } as const;
    return openHyperNetworkStep(model, { ...form, widths: contextWidths(model.unet.config) }, 7, options);
  },
  controlnet: () => openControlNetStep(model, { config: newControlNetConfig(model), conditioningScale: 0.5, seed: 7 }, options),
  "hyper-lora": () => openHyperLoraStep(model, standardShape(2, 2), 7, options),
  "ip-adapter": () => {
    const width = model.unet.config.crossAttentionDim;
    return openIpAdapterStep(model, { variant: "base", width, tokens: 2, imageWidth: 12 }, 7, options);
  },
};

describe("a new adapter's first step", () => {
  test.each(["controlnet", "hyper-lora"] as const)("%s begins as the base model, exactly but for rounding", async method => {
    const step = open[method]();
    const base = await total(step, false);
    expect(Math.abs((await total(step, true)) - base) / base).toBeLessThan(1e-5);
    await step.release();
  });

  test.each(Object.keys(open) as (keyof typeof open)[])("%s has the slope that its gradient says", async method => {
    const step = open[method]();
    const ratio = await slopeRatio(step);
    expect(ratio).toBeGreaterThan(0.97);
    expect(ratio).toBeLessThan(1.03);
    await step.release();
  });
});

/** The weighted loss of a prediction that is served. */
function lossOf({ data }: TensorF32): number {
  const { target } = twoItems();
  return data.reduce((sum, value, i) => sum + 0.5 * (value - target.data[i]!) ** 2, 0) / (data.length / 2);
}

describe("what is served of a result's tensors is what was trained", () => {
  const conditions = (): Pick<PredictArgs, "sample" | "timesteps" | "encoderHiddenStates"> => {
    const { sample, timesteps, encoderHiddenStates } = twoItems();
    return { sample, timesteps, encoderHiddenStates: encoderHiddenStates! };
  };
  const written = (step: AdapterStep, path: string, metadata: Record<string, string> = {}): string => {
    const tensors = step.tensors.list.map(({ name, shape }) => ({ name, shape, data: step.tensors.value(name).data }));
    writeTensors(cacheDir, path, tensors, metadata);
    return join(cacheDir, path);
  };

  test("hypernetwork", async () => {
    const step = open.hypernetwork();
    await slopeRatio(step);
    const options = { layer_structure: [1, 2, 1], activation_func: "tanh", is_layer_norm: false, activate_output: false };
    const metadata = Object.fromEntries(Object.entries(options).map(([name, value]) => [name, JSON.stringify(value)]));
    const file = written(step, "served/hypernetwork.safetensors", metadata);
    const adapter = await openHyperNetwork(adapterDiskFiles(file), "sha256:1");
    const uses = [{ adapter, weight: 1 }];
    const served = await model.predict({ ...conditions(), hypernetworks: [uses, uses] });
    expect(lossOf(served)).toBeCloseTo(await total(step, true), 4);
    await step.release();
  });

  test("controlnet", async () => {
    const step = openControlNetStep(model, { config: newControlNetConfig(model), conditioningScale: 1, seed: 7 }, options);
    await slopeRatio(step);
    const net = await openControlNet(written(step, "served/controlnet.safetensors"), model.unet, options);
    const control = await net.run({ ...conditions(), cond: twoItems().controlMap!, control: null });
    expect(lossOf(await model.predict({ ...conditions(), control }))).toBeCloseTo(await total(step, true), 4);
    await net.release();
    await step.release();
  });
});

test("a predicted LoRA differs from concept to concept once the net has learnt, and has the shapes of the layers", async () => {
  const step = openHyperLoraStep(model, standardShape(2, 2), 7, options);
  await slopeRatio(step);
  const [first, second] = await step.predicted();
  expect(first!.map(({ name }) => name)).toEqual(second!.map(({ name }) => name));
  for (const { name, shape, data } of first!) {
    const [out, width] = model.unet.shapes.get(`${name.replace(/^unet\./, "").replace(/\.lora_[AB]\.weight$/, "")}.weight`)!;
    expect(shape).toEqual(name.endsWith("lora_A.weight") ? [2, width] : [out, 2]);
    expect(data.some((value, i) => value !== second!.find(tensor => tensor.name === name)!.data[i])).toBe(true);
  }
  await step.release();
});

test.each([
  [5, 3],
  [3, 5],
])("a fixed factor [%i, %i] is orthonormal along its shorter side", (rows, columns) => {
  const factor = orthonormal(wave([rows, columns], 6).data, rows, columns);
  const [count, length] = rows < columns ? [rows, columns] : [columns, rows];
  const at = (vector: number, i: number): number => factor[rows < columns ? vector * columns + i : i * columns + vector]!;
  for (let a = 0; a < count; a++)
    for (let b = 0; b < count; b++) {
      const product = Array.from({ length }, (_, i) => at(a, i) * at(b, i)).reduce((sum, value) => sum + value, 0);
      expect(product).toBeCloseTo(a === b ? 1 : 0, 5);
    }
});
