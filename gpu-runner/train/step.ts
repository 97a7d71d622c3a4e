/**
 * What a trainer sees of a method: tensors that are trained and a function that adds their gradients. It knows neither graphs nor
 * how many sessions a step takes; `methods/` has one file and one table row a method.
 */
import type { TensorF32 } from "../components.ts";
import type { TrainedTensors } from "./trained-tensors.ts";

/** The items of one batch, all of one size; noise is already mixed in by `noiseBatch` of loss.ts. */
export interface StepBatch {
  /** Noisy latents [B, C, h, w]. */
  sample: TensorF32;
  /** What the prediction should be: noise or velocity, [B, C, h, w]. */
  target: TensorF32;
  /** Of each squared error: mask times min-SNR times prior weight over the count of items, [B, 1, h, w]. */
  lossWeights: TensorF32;
  /** One per item. */
  timesteps: readonly number[];
  /** Token ids by text encoder [B][L]; a new token's rows are ids from the vocabulary's size on. */
  inputIds: readonly (readonly (readonly number[])[])[];
  /** Text states [B, L, C] where no text encoder is trained: cached. Null: from `inputIds`. */
  encoderHiddenStates: TensorF32 | null;
  /** SDXL: pooled text [B, P] (null: from `inputIds`) and micro-conditioning [B, 6]. */
  added: { textEmbeds: TensorF32 | null; timeIds: TensorF32 } | null;
  /** ControlNet: [B, 3, 8h, 8w] in 0..1. */
  controlMap: TensorF32 | null;
  /** IP-Adapter: what the projection reads, [B, E] or [B, P, E]; rows of zeros for dropped pictures. */
  imageEmbeds: TensorF32 | null;
  /** Which concept each item shows. */
  concepts: readonly number[];
  /** hyper-lora: pictures of the items' concepts; null: all codes are the table's. */
  references: ReferencePictures | null;
}

export interface ReferencePictures {
  /** Of one picture per item, without noise, [B, C, h, w]. */
  latents: TensorF32;
  /** Whether an item's pairs are predicted from its picture. */
  used: readonly boolean[];
  /** Of each item's loss: what the distance of the picture's code from the table's weighs. */
  weights: readonly number[];
}

export interface TrainingStep {
  /** What the optimiser moves. */
  readonly tensors: TrainedTensors;
  /** Adds the gradients of the batch's weighted loss to `tensors.gradients`. @returns the weighted loss of each item; their sum is the loss */
  gradients(batch: StepBatch): Promise<readonly number[]>;
  /** The same losses without gradients; `adapted` false: as the base model has them, without what is trained. */
  losses(batch: StepBatch, adapted: boolean): Promise<readonly number[]>;
  release(): Promise<void>;
}
