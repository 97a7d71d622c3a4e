/** Several steps of the optimiser: losses, norms of gradients, and where the trained tensors end. */

import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import type { TensorF32, TrainableModel } from "../../components.ts";
import { AdamW } from "../../train/optimizer.ts";
import { rateFactor } from "../../train/schedule.ts";
import type { GoldenCase, GoldenJson, GoldenTensor, VerifyKind } from "../kind.ts";
import { caseBatch, type TrainParams, trainParamsSchema } from "./train-batches.ts";
import { normOutputs, normTolerance, openCase, sum, unsupportedTraining } from "./train-gradient.ts";

export const trainTrajectoryKind: VerifyKind = {
  kind: "train-trajectory",
  supports: unsupportedTraining,
  async run(goldenCase, context) {
    const params = trainParamsSchema.parse(goldenCase.params);
    const { steps = 0, accumulation, ema } = params;
    const { step, caseName, extendBatch } = await openCase(goldenCase, context, params);
    const model = await context.model();
    const { adamw, rate } = optimiserOf(step.tensors, params);
    const rowsBefore = vocabularyRows(model);
    const averages = step.tensors.values.slice();
    const losses: number[] = [];
    const norms: number[] = [];
    try {
      for (let number = 0; number < steps; number++) {
        step.tensors.gradients.fill(0);
        let loss = 0;
        for (let i = 0; i < accumulation; i++) {
          const index = number * accumulation + i;
          const batch = caseBatch(goldenCase, context, model, params, index);
          loss += sum(await step.gradients(extendBatch?.(batch, index) ?? batch));
        }
        losses.push(loss);
        norms.push(await adamw.step(number + 1, { main: rate(number), text: rate(number) }));
        if (ema) average(averages, step.tensors.values, ema);
      }
    } finally {
      await step.release();
    }
    const outputs: Record<string, GoldenTensor> = {
      losses: lossesOf(goldenCase, losses),
      grad_norms: { data: norms, shape: [steps] },
    };
    for (const { name, shape } of step.tensors.list) {
      const { data } = step.tensors.value(name);
      const start = step.tensors.offset(name);
      outputs[`final:${caseName(name)}`] = { data, shape };
      if (ema) outputs[`ema:${caseName(name)}`] = { data: averages.subarray(start, start + data.length), shape };
    }
    const otherRowsUnmoved = { json: isDeepStrictEqual(vocabularyRows(model), rowsBefore) };
    return { ...outputs, ...normOutputs(goldenCase, "norms", outputs), otherRowsUnmoved };
  },
};

function optimiserOf(tensors: ConstructorParameters<typeof AdamW>[0], { optimizer, steps = 0 }: TrainParams) {
  if (!optimizer) throw new Error("params.optimizer: expected AdamW's settings, got none");
  const { lr, betas, weightDecay, eps, clipNorm, schedule, warmupSteps } = optimizer;
  const adamw = new AdamW(tensors, { betas, weight_decay: weightDecay, epsilon: eps, clip_norm: clipNorm ?? null, moments: "float32" });
  const course = { ...optimizer, schedule, warmup_steps: warmupSteps };
  return { adamw, rate: (number: number) => lr * rateFactor(course, number, steps) };
}

/** The base's own token rows, of each text encoder. */
function vocabularyRows({ textEncoders }: TrainableModel): TensorF32[] {
  return textEncoders.map(({ embeddings, config }) => embeddings.tokenRows(Array.from({ length: config.vocabularySize }, (_, id) => id)));
}

function average(into: Float32Array, values: Float32Array, decay: number): void {
  for (let i = 0; i < into.length; i++) into[i] = decay * into[i]! + (1 - decay) * values[i]!;
}

/** A case may give the losses as JSON too: as it has them where ours are near enough. */
function lossesOf({ expectedJson }: GoldenCase, losses: readonly number[]): GoldenTensor & GoldenJson {
  const all: Record<string, unknown> = typeof expectedJson === "object" && expectedJson !== null ? { ...expectedJson } : {};
  const wanted = z.array(z.number()).safeParse(all.losses);
  const json = losses.map((loss, i) => {
    const want = wanted.data?.[i];
    return want !== undefined && Math.abs(loss - want) <= normTolerance * Math.abs(want) ? want : loss;
  });
  return { data: losses, shape: [losses.length], json };
}
