/** Batches of the cases of trainings. */
import { z } from "zod";
import type { TensorF32, TrainableModel } from "../../components.ts";
import { cumulativeAlphas } from "../../schedulers/betas.ts";
import { samplerConfig } from "../../schedulers/config.ts";
import { type LossItem, noiseBatch } from "../../train/loss.ts";
import type { StepBatch } from "../../train/step.ts";
import type { GoldenCase, GoldenTensor, VerifyContext } from "../kind.ts";
import { tokenIds } from "./adapter-outputs.ts";

const optimizerSchema = z.object({
  name: z.literal("adamw"),
  lr: z.number(),
  betas: z.tuple([z.number(), z.number()]),
  weightDecay: z.number(),
  eps: z.number(),
  clipNorm: z.number().nullish(),
  schedule: z.enum(["constant", "linear", "cosine"]).default("constant"),
  warmupSteps: z.int().default(0),
});

export const trainParamsSchema = z.looseObject({
  method: z.string(),
  predictionType: z.enum(["epsilon", "v_prediction"]),
  alpha: z.number().optional(),
  doraDetachNorm: z.boolean().default(true),
  textEncoder: z.boolean().optional(),
  minSnrGamma: z.number().nullish(),
  noiseOffset: z.number().nullish(),
  priorWeight: z.number().optional(),
  instance: z.array(z.int()).optional(),
  class: z.array(z.int()).optional(),
  steps: z.int().optional(),
  accumulation: z.int().default(1),
  ema: z.number().nullish(),
  optimizer: optimizerSchema.optional(),
});
export type TrainParams = z.infer<typeof trainParamsSchema>;

/** The batch of a gradient case (`index` null), or of one place along the leading dimension of a trajectory's inputs. */
export function caseBatch(
  goldenCase: GoldenCase,
  context: VerifyContext,
  model: TrainableModel,
  params: TrainParams,
  index: number | null,
): StepBatch {
  const { inputs } = goldenCase;
  const read = (name: string): GoldenTensor => at(context.input(name), index);
  const optional = (name: string): TensorF32 | null => (name in inputs ? float32(read(name)) : null);
  const latents = float32(read("latents"));
  const noise = float32(read("noise"));
  const timesteps = Array.from(read("timesteps").data);
  const { schedulerConfig, family } = model.description;
  const alphas = cumulativeAlphas(samplerConfig("ddim", {}, schedulerConfig, family));
  const mask = optional("mask");
  const offset = optional("offset_noise") ?? optional("noise_offset");
  const [batch, ...shape] = latents.shape as [number, ...number[]];
  const size = latents.data.length / batch;
  const items = Array.from({ length: batch }, (_, i): LossItem => {
    const own = noise.data.slice(i * size, (i + 1) * size);
    if (offset && params.noiseOffset) addOffset(own, offset.data.subarray(i * shape[0]!, (i + 1) * shape[0]!), params.noiseOffset);
    const pixels = mask && mask.data.length / batch;
    return {
      latents: latents.data.subarray(i * size, (i + 1) * size),
      noise: own,
      alpha: alphas[timesteps[i]!]!,
      mask: mask && pixels ? mask.data.subarray(i * pixels, (i + 1) * pixels) : null,
      weight: itemWeight(params, i, batch) / params.accumulation,
    };
  });
  const options = { predictsVelocity: params.predictionType === "v_prediction", minSnrGamma: params.minSnrGamma ?? null, shape };
  const timeIds = optional("time_ids");
  return {
    ...noiseBatch(items, options),
    timesteps,
    inputIds: ["input_ids", "input_ids_2"].filter(name => name in inputs).map(name => tokenIds(read(name))),
    encoderHiddenStates: optional("encoder_hidden_states"),
    added: timeIds && { textEmbeds: optional("text_embeds"), timeIds },
    controlMap: optional("controlnet_cond"),
    imageEmbeds: optional("image_embeds"),
    concepts: Array<number>(batch).fill(0),
    references: null,
  };
}

/** One place along the first dimension. */
export function at({ data, shape }: GoldenTensor, index: number | null): GoldenTensor {
  if (index === null) return { data, shape };
  const rest = shape.slice(1);
  const size = rest.reduce((a, b) => a * b, 1);
  return { data: Array.prototype.slice.call(data, index * size, (index + 1) * size), shape: rest };
}

function float32({ data, shape }: GoldenTensor): TensorF32 {
  return { data: Float32Array.from(data), shape };
}

/** 1 / B; with prior pictures the instance's mean and the class' mean times its weight. */
function itemWeight({ priorWeight, instance, class: prior }: TrainParams, item: number, batch: number): number {
  if (priorWeight === undefined || !instance || !prior) return 1 / batch;
  return prior.includes(item) ? priorWeight / prior.length : 1 / instance.length;
}

/** Guttenberg 2023: one number per channel over all its pixels. */
function addOffset(noise: Float32Array, offsets: Float32Array, share: number): void {
  const pixels = noise.length / offsets.length;
  for (let i = 0; i < noise.length; i++) noise[i]! += share * offsets[Math.floor(i / pixels)]!;
}
