/** The UNet's share of a training step: weighted squared errors of a batch, and gradients in what is fed. */
import { cotangentName, gradientName } from "../autodiff/differentiate.ts";
import type { TensorF32, UnetBase } from "../components.ts";
import type { Graph } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import { buildUnet, plainUnet, type UnetFeatures } from "../models/unet.ts";
import { conditionFeeds } from "../models/unet-feeds.ts";
import type { Feeds } from "../session.ts";
import type { StepBatch } from "./step.ts";
import { type TrainingOptions, TrainingSession } from "./training-session.ts";

export interface UnetStepResult {
  /** The weighted loss of each item. */
  losses: readonly number[];
  /** By input. */
  gradients: Readonly<Record<string, TensorF32>>;
}

/** The texts that a batch is predicted with: cached, or of a text encoder that is trained. */
export interface BatchTexts {
  encoderHiddenStates: TensorF32;
  /** SDXL: pooled [B, P]; null for others. */
  pooled: TensorF32 | null;
}

export class UnetStep {
  readonly #unet: UnetBase;
  readonly #wrt: readonly string[];
  readonly #session: TrainingSession;
  /** The inputs that are not of every UNet. */
  readonly #inputs: ReadonlyMap<string, readonly number[]>;

  /** @param wrt inputs of `buildUnet` with these features whose gradients are wanted */
  constructor(unet: UnetBase, features: Partial<UnetFeatures>, wrt: readonly string[], options: TrainingOptions) {
    const graph = buildUnet(unet.config, unet.weights, { ...plainUnet, ...features });
    this.#unet = unet;
    this.#wrt = wrt;
    this.#inputs = numericInputs(graph);
    this.#session = new TrainingSession({ graph, outputs: ["loss"], of: ["loss"], wrt, extend: addLoss }, options);
  }

  /** Shapes of the inputs that are fed the same way at every size, such as trained weights. */
  get inputShapes(): ReadonlyMap<string, readonly number[]> {
    return this.#inputs;
  }

  /** @param feeds the features' inputs */
  async gradients(batch: StepBatch, texts: BatchTexts, feeds: Feeds): Promise<UnetStepResult> {
    const ones = { data: new Float32Array(batch.timesteps.length).fill(1), shape: [batch.timesteps.length] };
    const all = { ...this.#feeds(batch, texts), ...feeds, [cotangentName("loss")]: ones };
    const results = await this.#session.gradients(all);
    const gradients = Object.fromEntries(this.#wrt.map(name => [name, results[gradientName(name)]!]));
    return { losses: Array.from(results.loss!.data), gradients };
  }

  async losses(batch: StepBatch, texts: BatchTexts, feeds: Feeds): Promise<readonly number[]> {
    const results = await this.#session.forward({ ...this.#feeds(batch, texts), ...feeds });
    return Array.from(results.loss!.data);
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  #feeds({ sample, target, lossWeights, timesteps, added }: StepBatch, { encoderHiddenStates, pooled }: BatchTexts): Feeds {
    const conditions = {
      sample,
      timesteps,
      encoderHiddenStates,
      ...(added && pooled && { added: { textEmbeds: pooled, timeIds: added.timeIds } }),
    };
    return { ...conditionFeeds(this.#unet.config, conditions), target, loss_weights: lossWeights };
  }
}

/** `loss` [B]: the sum of weights * (prediction - target)^2 over C * h * w, with inputs `target` and `loss_weights` [B, 1, h, w]. */
function addLoss(graph: Graph): void {
  const prediction = graph.outputs.find(({ name }) => name === "prediction")!.value;
  const [batch, channels, height, width] = prediction.shape as [number, number, number, number];
  const target = graph.input("target", prediction.shape);
  const weights = graph.input("loss_weights", [batch, 1, height, width]);
  const error = ops.subtract(prediction, target);
  const weighted = ops.multiply(ops.multiply(error, error), weights);
  const mean = ops.scale(ops.reduceSum(weighted, [1, 2, 3]), 1 / (channels * height * width));
  graph.output("loss", ops.reshape(mean, [batch]));
}

export function numericInputs(graph: Graph): ReadonlyMap<string, readonly number[]> {
  const isNumeric = (shape: Graph["inputs"][number]["shape"]): shape is readonly number[] => shape.every(dim => typeof dim === "number");
  return new Map(graph.inputs.flatMap(({ name, shape }) => (isNumeric(shape) ? [[name, shape] as const] : [])));
}
