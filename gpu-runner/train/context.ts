/** What a training needs from outside; the model thread fills it in. */
import type { ModelManifest } from "../../shared/model.ts";
import type { OptimizerSettings, TrainingEvent, TrainingRequest } from "../../shared/training.ts";
import type { TensorF32 } from "../components.ts";
import type { PictureContext, PictureModel } from "../pipeline/context.ts";
import type { ItemAdapters } from "../pipeline/item-adapters.ts";
import type { CheckpointArrays } from "./checkpoint.ts";
import type { PreparedItem } from "./dataset.ts";
import type { BaseWeights } from "./export/dreambooth.ts";
import type { ResultTensor } from "./export/result.ts";
import type { OwnAdapter } from "./own-pictures.ts";
import type { TrainingStep } from "./step.ts";
import type { TrainedTensors } from "./trained-tensors.ts";

/** Moves `values` of the trained tensors by their `gradients`. */
export interface Optimiser {
  /** Moments by name, which checkpoints write and fill in place. */
  readonly state: CheckpointArrays;
  /**
   * One step, the `number`-th from 1 on (of the bias correction). The gradients are left as they are.
   * @returns the gradients' global L2 norm before clipping
   */
  step(number: number, rates: { main: number; text: number }): Promise<number>;
  release(): Promise<void>;
}

/** An item's reference picture as it is shown; null: none, as dropout has it. */
export type EmbedReference = (shown: { source: PreparedItem; isFlipped: boolean } | null) => Promise<TensorF32>;

/** A file that serving needs beside the trained tensors. */
export interface Companion {
  from: string;
  path: string;
}

/** A method at work. */
export interface OpenedStep {
  step: TrainingStep;
  /** IP-Adapter: what its image projection reads of an item's reference picture, or of none: [1, E] or [1, P, E]. */
  embed?: EmbedReference;
  /** Whether its batches hold control maps. */
  readsMaps?: boolean;
  /** Evaluation: the adapter that is scored, and the words and text layers that it brings. */
  given?: { adapter: OwnAdapter; texts: ItemAdapters };
  /** Files that are registered with the adapter: where they lie, and their paths below the adapter's folder. */
  companions?: readonly Companion[];
  /** hyper-lora: the LoRA that it predicts for each concept, as diffusers names its tensors. */
  predicted?: () => Promise<readonly (readonly ResultTensor[])[]>;
  /** hyper-lora: the share of items whose pairs are predicted from a picture instead of a code of their own. */
  referenceShare?: number;
  /** What result files have beside the trained tensors. */
  constants?: readonly ResultTensor[];
  /** Called once with the pictures that are learned from, before anything else. */
  begin?: (items: readonly PreparedItem[]) => Promise<void>;
  /** DreamBooth: the weights before training by the trained tensors' names, read anew each time. */
  base?: BaseWeights;
  /** DreamBooth: writes the whole model that the trained tensors make. @returns paths below the folder */
  writeModel?: (folder: string) => string[];
  /** What follows the request's steps; none where absent. */
  stages?: readonly TrainingStage[];
}

/** Steps with tensors of their own over one concept's pictures. */
export interface TrainingStage {
  concept: number;
  steps: number;
  optimizer: OptimizerSettings;
  /** Begins where the stages before have ended; it is released before the method's own step, and its tensors' values count from now on. */
  open(): Promise<TrainingStep>;
}

export interface TrainingContext {
  model: PictureModel;
  /** For pictures that the training makes: samples and priors. */
  pictures: PictureContext;
  /** How the model's own pictures are made. */
  defaults: ModelManifest["defaults"];
  /** Absolute path of a dataset's file. */
  file(sha256: string): string;
  /** Latents and prior pictures are kept here by content. */
  cacheDir: string;
  /** An existing folder of this training's own: checkpoint and results. */
  folder: string;
  openStep(request: TrainingRequest): Promise<OpenedStep>;
  openOptimiser(tensors: TrainedTensors, settings: OptimizerSettings): Promise<Optimiser>;
  onEvent(event: TrainingEvent): void;
  /** A whole checkpoint stands at the path until this returns. */
  onCheckpoint(path: string, step: number): void | Promise<void>;
  /** Path of the checkpoint to go on from. */
  resumeFrom: string | null;
  /** Awaited between steps: others may use the model until it returns. */
  yieldTo(): Promise<void>;
  /** Milliseconds since 1970 at which training ends in good order; null: none. */
  deadline: number | null;
  /** Ends it after the step in progress and a last checkpoint. */
  signal?: AbortSignal;
}
