import { join } from "node:path";
import { expect, test } from "vitest";
import { trainingAlphas } from "../../../gpu-runner/train/batch.ts";
import { loadCheckpoint, saveCheckpoint } from "../../../gpu-runner/train/checkpoint.ts";
import { CaptionStates, type PreparedItem } from "../../../gpu-runner/train/dataset.ts";
import type { StepBatch } from "../../../gpu-runner/train/step.ts";
import { TrainingRun } from "../../../gpu-runner/train/training-run.ts";
import type { TrainingRequest } from "../../../shared/training.ts";
import { arithmeticModel, contextWith } from "../pipeline/fixtures.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { plainAdamW, quadraticStep, trainingRequest } from "./quadratic.ts";

const constant = (value: number, caption: string): PreparedItem => ({
  item: { ...trainingRequest.items[0]!, caption },
  bucket: 0,
  size: { width: 64, height: 64 },
  latents: [new Float32Array(256).fill(value), new Float32Array(256).fill(-value)],
  masks: null,
  condition: async () => ({ data: new Uint8Array(64 * 64 * 3), width: 64, height: 64 }),
  timeIds: [64, 64, 0, 0, 64, 64],
});
const items = {
  train: [1, 2, 3].map(value => constant(value, "a zxq")),
  validation: [constant(2, "a zxq")],
  prior: [constant(0, "a toy")],
};

async function opened(request: TrainingRequest, seen: StepBatch[] = []) {
  const model = await contextWith(arithmeticModel({ predictionType: "v_prediction" })).model("");
  const step = quadraticStep([4, 8, 8], seen);
  const optimiser = plainAdamW(step.tensors);
  const settings = { request, model, alphas: trainingAlphas(model, request.loss), captions: new CaptionStates(model) };
  return { step, run: new TrainingRun(step, optimiser, settings, items, "hash") };
}

async function advance(run: TrainingRun, to: number): Promise<void> {
  while (run.progress.step < to) {
    await run.advance();
    if (run.progress.step % 2 === 0) await run.validate();
  }
}

test("six steps equal three, a checkpoint and three more, bit by bit", async () => {
  const whole = await opened(trainingRequest);
  await advance(whole.run, 6);
  const path = join(temporaryFolder(), "checkpoint.safetensors");
  const first = await opened(trainingRequest);
  await advance(first.run, 3);
  saveCheckpoint(path, first.run.arrays, first.run.progress);
  const second = await opened(trainingRequest);
  Object.assign(second.run.progress, loadCheckpoint(path, second.run.arrays, "hash"));
  await advance(second.run, 6);
  expect(second.run.progress).toEqual(whole.run.progress);
  for (const [name, array] of whole.run.arrays) expect(second.run.arrays.get(name), name).toEqual(array);
  second.run.finish();
  whole.run.finish();
  expect(second.step.tensors.values).toEqual(whole.step.tensors.values);
  expect(whole.run.progress.losses).toHaveLength(6);
  expect(whole.run.progress.validation.map(([step]) => step)).toEqual([2, 4, 6]);
});

test("a step weighs its items by one over batch and accumulation, prior pictures by their weight, and min-SNR", async () => {
  const seen: StepBatch[] = [];
  const request = { ...trainingRequest, loss: { ...trainingRequest.loss, min_snr_gamma: null } };
  const { run } = await opened(request, seen);
  await run.advance();
  expect(seen.map(({ lossWeights }) => lossWeights.data[0])).toEqual([0.25, 0.125, 0.25, 0.125]);
  expect(seen[0]!.lossWeights.shape).toEqual([2, 1, 8, 8]);
  const weighted: StepBatch[] = [];
  await (await opened(trainingRequest, weighted)).run.advance();
  const alphas = trainingAlphas(await contextWith(arithmeticModel()).model(""), trainingRequest.loss);
  const [timestep] = weighted[0]!.timesteps;
  const snr = alphas[timestep!]! / (1 - alphas[timestep!]!);
  expect(weighted[0]!.lossWeights.data[0]).toBeCloseTo((0.25 * Math.min(snr, 5)) / (snr + 1), 6);
});

test("the best validated weights are the result, and averages stand in for the trained ones only while asked", async () => {
  const { run, step } = await opened({ ...trainingRequest, steps: 40, flip: false });
  const before = (await run.validate())!.loss;
  await advance(run, 40);
  const trained = step.tensors.values.slice();
  const { best, validation } = run.progress;
  expect(best!.loss).toBe(Math.min(...validation.map(([, loss]) => loss)));
  expect(best!.loss).toBeLessThan(before);
  expect(step.tensors.values).toEqual(trained);
  run.finish();
  expect(step.tensors.values).toEqual(run.arrays.get("best"));
});

test("a loss that is no number ends it", async () => {
  const { run, step } = await opened(trainingRequest);
  step.tensors.values[0] = Number.NaN;
  await expect(run.advance()).rejects.toThrow(/loss of step 1: expected a finite number, got NaN/);
});
