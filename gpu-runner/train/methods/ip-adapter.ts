/** IP-Adapter (Ye et al. 2023), base and plus: the projection of picture features to tokens, and keys and values of these in every layer. */
import type { ImageEncoder } from "../../adapters/ip-adapter/image-encoder.ts";
import { readStored } from "../../adapters/stored-tensor.ts";
import { cotangentName, gradientName } from "../../autodiff/differentiate.ts";
import type { TensorF32, TrainableModel } from "../../components.ts";
import { buildIpProjection, type IpProjectionConfig } from "../../models/ip-adapter.ts";
import { buildIpKeysValues, crossAttentionPlaces } from "../../models/ip-attention.ts";
import type { Feeds } from "../../session.ts";
import { addInto, FlatGraph, FlatWeights } from "../flat-weights.ts";
import { normals, randomKey } from "../random.ts";
import type { StepBatch } from "../step.ts";
import { TrainedTensors } from "../trained-tensors.ts";
import { type TrainingOptions, TrainingSession } from "../training-session.ts";
import { type AdapterPart, AdapterStep } from "./adapter-step.ts";

export type TrainedIpConfig = Extract<IpProjectionConfig, { variant: "base" | "plus" }>;

const projectionPrefix = "image_proj.";
const latentsName = `${projectionPrefix}latents`;

/** @param encoder released with the step */
export function openIpAdapterStep(
  model: TrainableModel,
  config: TrainedIpConfig,
  seed: number,
  options: TrainingOptions,
  encoder: Pick<ImageEncoder, "release"> | null = null,
): AdapterStep {
  return new AdapterStep(model, new IpAdapterPart(model, { config, seed, encoder }, options), options);
}

interface NewPart {
  config: TrainedIpConfig;
  seed: number;
  encoder: Pick<ImageEncoder, "release"> | null;
}

class IpAdapterPart implements AdapterPart {
  readonly tensors: TrainedTensors;
  readonly features = { ipAdapters: [{ masked: false }] };
  readonly wrt: readonly string[];
  readonly #config: TrainedIpConfig;
  readonly #projection: Part;
  readonly #keysValues: Part;
  readonly #encoder: NewPart["encoder"];

  constructor(model: TrainableModel, { config, seed, encoder }: NewPart, options: TrainingOptions) {
    this.#encoder = encoder;
    const weights = new FlatWeights();
    // The queries are one of a resampler's own tensors, but each item has a copy of them.
    if (config.variant === "plus") weights.take(latentsName, [1, config.tokens, config.resampler.width]);
    const queries = config.variant === "plus" ? ["latents"] : [];
    this.#config = config;
    this.#projection = new Part(new FlatGraph(buildIpProjection(config, weights.source(projectionPrefix))), queries, options);
    const shape = (width: number): readonly number[] => [width, model.unet.config.crossAttentionDim];
    const layers = crossAttentionPlaces(model.unet.config).map(({ place, width }, i) => {
      const [key, value] = ["k", "v"].map(part => weights.take(`ip_adapter.${2 * i + 1}.to_${part}_ip.weight`, shape(width)));
      return [place, { key: key!, value: value! }] as const;
    });
    this.#keysValues = new Part(new FlatGraph(buildIpKeysValues(new Map(layers), model.unet.config)), ["tokens"], options);
    this.tensors = new TrainedTensors(weights.list);
    this.wrt = this.#keysValues.outputs.map(unetInput);
    startNew(this.tensors, model, seed);
  }

  async forward(batch: StepBatch): Promise<Feeds> {
    const { tokens } = await this.#tokens(batch);
    const keysValues = await this.#keysValues.session.forward({ tokens, ...this.#keysValues.flat.feeds(this.tensors) });
    const count = batch.timesteps.length;
    const gain = { data: new Float32Array(count).fill(1), shape: [count, 1, 1] };
    const inputs = this.#keysValues.outputs.map(output => [unetInput(output), keysValues[output]!] as const);
    return { ...Object.fromEntries(inputs), "ip_adapter.0.gain": gain };
  }

  async backward(batch: StepBatch, _texts: unknown, gradients: Readonly<Record<string, TensorF32>>): Promise<void> {
    const { tokens, shape, feeds } = await this.#tokens(batch);
    const upper = await this.#keysValues.backward(this.tensors, { tokens }, output => gradients[unetInput(output)]!);
    const cotangent = { data: upper[gradientName("tokens")]!.data, shape };
    const lower = await this.#projection.backward(this.tensors, feeds, () => cotangent);
    const queries = lower[gradientName("latents")];
    if (!queries) return;
    const into = this.tensors.gradient(latentsName).data;
    for (let from = 0; from < queries.data.length; from += into.length) addInto(into, queries.data.subarray(from, from + into.length));
  }

  async release(): Promise<void> {
    await this.#projection.session.release();
    await this.#keysValues.session.release();
    await this.#encoder?.release();
  }

  /** An item's pictures are projected each by itself (`shape`), and their tokens stand one after the other. */
  async #tokens({ imageEmbeds, timesteps }: StepBatch): Promise<{ tokens: TensorF32; shape: readonly number[]; feeds: Feeds }> {
    if (!imageEmbeds) throw new RangeError("imageEmbeds: expected picture features of every item of an IP-Adapter's batch, got none");
    const config = this.#config;
    const features = imageEmbeds.shape.slice(config.variant === "base" ? -1 : -2);
    const pictures = imageEmbeds.data.length / features.reduce((a, b) => a * b, 1);
    const feeds = { embeds: { data: imageEmbeds.data, shape: [pictures, ...features] }, ...this.#queries(pictures) };
    const { tokens } = await this.#projection.session.forward({ ...feeds, ...this.#projection.flat.feeds(this.tensors) });
    const { data, shape } = tokens!;
    return { tokens: { data, shape: [timesteps.length, data.length / timesteps.length / config.width, config.width] }, shape, feeds };
  }

  #queries(pictures: number): Feeds {
    if (this.#config.variant === "base") return {};
    const { data, shape } = this.tensors.value(latentsName);
    const repeated = new Float32Array(pictures * data.length);
    for (let i = 0; i < pictures; i++) repeated.set(data, i * data.length);
    return { latents: { data: repeated, shape: [pictures, ...shape.slice(1)] } };
  }
}

const unetInput = (output: string): string => `ip_adapter.0.${output}`;

/** A graph of trained weights with its session. */
class Part {
  readonly flat: FlatGraph;
  readonly outputs: readonly string[];
  readonly session: TrainingSession;

  /** @param more inputs beside the weights whose gradients are wanted */
  constructor(flat: FlatGraph, more: readonly string[], options: TrainingOptions) {
    this.flat = flat;
    this.outputs = flat.graph.outputs.map(({ name }) => name);
    const wrt = [...flat.inputs, ...more];
    this.session = new TrainingSession({ graph: flat.graph, outputs: this.outputs, of: this.outputs, wrt }, options);
  }

  /** Adds the weights' gradients. @returns all gradients */
  async backward(tensors: TrainedTensors, feeds: Feeds, cotangent: (output: string) => TensorF32): Promise<Record<string, TensorF32>> {
    const cotangents = Object.fromEntries(this.outputs.map(output => [cotangentName(output), cotangent(output)]));
    const results = await this.session.gradients({ ...feeds, ...this.flat.feeds(tensors), ...cotangents });
    this.flat.addGradients(tensors, input => results[gradientName(input)]!);
    return results;
  }
}

/** Keys and values begin as the UNet's own for the text, the projection at random with deviation 0.02, its norms as ones. */
function startNew(tensors: TrainedTensors, { unet }: TrainableModel, seed: number): void {
  const places = crossAttentionPlaces(unet.config);
  tensors.list.forEach(({ name, shape }, number) => {
    const { data } = tensors.value(name);
    const layer = /^ip_adapter\.(\d+)\.to_([kv])_ip\.weight$/.exec(name);
    if (layer) {
      const { place } = places[(Number(layer[1]) - 1) / 2]!;
      data.set(readStored(unet.weights.take(`${place}.attn2.to_${layer[2]}.weight`, shape)).data);
    } else if (shape.length > 1) data.set(normals(randomKey(seed, "start", number), data.length).map(value => 0.02 * value));
    else if (name.endsWith(".weight")) data.fill(1);
  });
}
