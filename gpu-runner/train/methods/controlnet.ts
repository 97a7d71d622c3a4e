/** ControlNet (Zhang et al. 2023): a copy of the UNet's encoder, all of it trained; its residuals reach the UNet through convolutions that begin at zero. */

import { readStored } from "../../adapters/stored-tensor.ts";
import { cotangentName, gradientName } from "../../autodiff/differentiate.ts";
import type { TensorF32, TrainableModel } from "../../components.ts";
import { buildControlNet, type ControlNetConfig } from "../../models/controlnet.ts";
import { conditionFeeds } from "../../models/unet-feeds.ts";
import type { Feeds } from "../../session.ts";
import { FlatGraph, FlatWeights } from "../flat-weights.ts";
import { randomKey, uniform } from "../random.ts";
import type { StepBatch } from "../step.ts";
import { TrainedTensors } from "../trained-tensors.ts";
import { type TrainingOptions, TrainingSession } from "../training-session.ts";
import type { BatchTexts } from "../unet-step.ts";
import { type AdapterPart, AdapterStep } from "./adapter-step.ts";

/** diffusers' widths of the control map's encoder, from the full resolution down. */
const embeddingChannels = [16, 32, 96, 256];

/** Of a new net, whose control map's encoder ends at the latents' size. Throws RangeError for latents that are smaller than an eighth. */
export function newControlNetConfig({ unet, description: { vaeScaleFactor } }: TrainableModel): ControlNetConfig {
  const levels = Math.log2(vaeScaleFactor) + 1;
  if (levels > embeddingChannels.length)
    throw new RangeError(`ControlNet: expected a base whose latents are at least an eighth of the picture's size, got 1/${vaeScaleFactor}`);
  return {
    unet: { ...unet.config, guidanceWidth: null },
    conditioningChannels: 3,
    embeddingChannels: embeddingChannels.slice(0, levels),
    channelOrder: "rgb",
    globalPool: false,
    union: null,
  };
}

export interface ControlNetTraining {
  config: ControlNetConfig;
  /** Of every residual. */
  conditioningScale: number;
  seed: number;
}

export function openControlNetStep(model: TrainableModel, training: ControlNetTraining, options: TrainingOptions): AdapterStep {
  if (training.config.union || training.config.globalPool || training.config.channelOrder === "bgr")
    throw new RangeError("ControlNet: expected one control, RGB maps and residuals per pixel, got another form, which is not trained");
  return new AdapterStep(model, new ControlNetPart(model, training, options), options);
}

class ControlNetPart implements AdapterPart {
  readonly tensors: TrainedTensors;
  readonly features = { control: true };
  readonly wrt: readonly string[];
  readonly #training: ControlNetTraining;
  readonly #flat: FlatGraph;
  readonly #session: TrainingSession;
  /** The UNet's input of each output. */
  readonly #inputs: ReadonlyMap<string, string>;

  constructor(model: TrainableModel, training: ControlNetTraining, options: TrainingOptions) {
    const weights = new FlatWeights();
    this.#flat = new FlatGraph(buildControlNet(training.config, weights.source()));
    this.#training = training;
    this.tensors = new TrainedTensors(weights.list);
    startNew(this.tensors, model, training.seed);
    const outputs = this.#flat.graph.outputs.map(({ name }) => name);
    this.#inputs = new Map(outputs.map(name => [name, `control_${name}`]));
    this.wrt = [...this.#inputs.values()];
    this.#session = new TrainingSession({ graph: this.#flat.graph, outputs, of: outputs, wrt: this.#flat.inputs }, options);
  }

  async forward(batch: StepBatch, texts: BatchTexts): Promise<Feeds> {
    const residuals = await this.#session.forward(this.#feeds(batch, texts));
    return Object.fromEntries([...this.#inputs].map(([output, input]) => [input, this.#scaled(residuals[output]!)]));
  }

  async backward(batch: StepBatch, texts: BatchTexts, gradients: Readonly<Record<string, TensorF32>>): Promise<void> {
    const cotangents = [...this.#inputs].map(([output, input]) => [cotangentName(output), this.#scaled(gradients[input]!)] as const);
    const results = await this.#session.gradients({ ...this.#feeds(batch, texts), ...Object.fromEntries(cotangents) });
    this.#flat.addGradients(this.tensors, input => results[gradientName(input)]!);
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  #feeds({ sample, timesteps, added, controlMap }: StepBatch, { encoderHiddenStates, pooled }: BatchTexts): Feeds {
    if (!controlMap) throw new RangeError("controlMap: expected a control map for every item of a ControlNet's batch, got none");
    const conditions = {
      sample,
      timesteps,
      encoderHiddenStates,
      ...(added && pooled && { added: { textEmbeds: pooled, timeIds: added.timeIds } }),
    };
    return { ...conditionFeeds(this.#training.config.unet, conditions), cond: controlMap, ...this.#flat.feeds(this.tensors) };
  }

  #scaled({ data, shape }: TensorF32): TensorF32 {
    const { conditioningScale } = this.#training;
    return { data: conditioningScale === 1 ? data : data.map(value => value * conditioningScale), shape };
  }
}

/** The UNet's own where it has them; the rest as PyTorch starts convolutions, but for those that have to begin at zero. */
function startNew(tensors: TrainedTensors, { unet }: TrainableModel, seed: number): void {
  tensors.list.forEach(({ name, shape }, number) => {
    const into = tensors.value(name).data;
    const base = unet.shapes.get(name);
    if (base && into.length === base.reduce((a, b) => a * b, 1)) {
      into.set(readStored(unet.weights.take(name, shape)).data);
      return;
    }
    if (/^controlnet_(down_blocks\.\d+|mid_block|cond_embedding\.conv_out)\./.test(name)) return;
    const weight = tensors.value(name.replace(/bias$/, "weight"));
    const bound = 1 / Math.sqrt(weight.data.length / weight.shape[0]!);
    for (let i = 0; i < into.length; i++) into[i] = bound * (2 * uniform(randomKey(seed, "start", number, i)) - 1);
  });
}
