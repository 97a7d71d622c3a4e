/** The loss of a batch, and its gradients in what is trained. */

import { z } from "zod";
import type { GoldenCase, GoldenJson, GoldenTensor, VerifyContext, VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { caseBatch, type TrainParams, trainParamsSchema } from "./train-batches.ts";
import { type CaseStep, caseMethods } from "./train-methods.ts";

/** Relative difference of norms that counts as none. */
export const normTolerance = 1e-3;

/** Of the greatest norm: what rounding alone leaves of a gradient that is zero. */
const noise = 1e-5;

export const trainGradientKind: VerifyKind = {
  kind: "train-gradient",
  supports: unsupportedTraining,
  async run(goldenCase, context) {
    const params = trainParamsSchema.parse(goldenCase.params);
    const { step, caseName, extendBatch } = await openCase(goldenCase, context, params);
    try {
      const batch = caseBatch(goldenCase, context, await context.model(), params, null);
      const losses = await step.gradients(extendBatch?.(batch, null) ?? batch);
      const outputs: Record<string, GoldenTensor> = { loss: { data: [sum(losses)], shape: [1] } };
      for (const { name } of step.tensors.list) outputs[`grad:${caseName(name)}`] = step.tensors.gradient(name);
      return { ...outputs, ...normOutputs(goldenCase, "gradNorms", outputs) };
    } finally {
      await step.release();
    }
  },
};

/** Why a case of a training cannot be computed; null where it can. */
export function unsupportedTraining({ params }: GoldenCase, modelPath: string | null): string | null {
  const { method } = trainParamsSchema.parse(params);
  return Object.hasOwn(caseMethods, method) ? unsupportedBase(modelPath) : `training method ${method}`;
}

export async function openCase(goldenCase: GoldenCase, context: VerifyContext, params: TrainParams): Promise<CaseStep> {
  const method = Object.entries(caseMethods).find(([name]) => name === params.method)![1];
  const options = { provider: "cpu", cacheDir: context.cacheDir } as const;
  return method({ goldenCase, context, model: await context.model(), params, options });
}

export function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}

/** The wanted norms where ours are near enough, so that what is compared is equal then; and of what should be zero, what is. */
export function normOutputs(
  { expectedJson }: GoldenCase,
  member: "gradNorms" | "norms",
  outputs: Readonly<Record<string, GoldenTensor>>,
): Record<string, GoldenJson> {
  const all: Record<string, unknown> = typeof expectedJson === "object" && expectedJson !== null ? { ...expectedJson } : {};
  const greatest = Math.max(...Object.values(outputs).map(({ data }) => norm(data)));
  const zeros = z.array(z.string()).safeParse(all.zeroInTheory);
  const isZero = (name: string): boolean => outputs[name] !== undefined && norm(outputs[name].data) <= noise * greatest;
  const json: Record<string, GoldenJson> = zeros.success ? { zeroInTheory: { json: zeros.data.filter(isZero) } } : {};
  const wanted = all[member];
  if (typeof wanted !== "object" || wanted === null) return json;
  const norms = Object.entries(wanted).map(([name, want]) => {
    const got = outputs[name] ? norm(outputs[name].data) : null;
    return [name, got !== null && Math.abs(got - want) <= normTolerance * want + Number.MIN_VALUE ? want : got];
  });
  return { ...json, [member]: { json: Object.fromEntries(norms) } };
}

function norm(data: ArrayLike<number>): number {
  return Math.sqrt(Array.from(data).reduce((total, value) => total + value * value, 0));
}
