/** DreamBooth (Ruiz et al. 2023): every weight of the UNet, and of the text encoders where wanted. */
import type { TensorF32, TextEncoderBase, TrainableModel } from "../../components.ts";
import { type EmbeddingTableName, embeddingTables } from "../../models/text-embeddings.ts";
import type { BaseWeights } from "../export/dreambooth.ts";
import type { TrainedWeight } from "../export/full-model.ts";
import { type TrainedTensor, TrainedTensors } from "../trained-tensors.ts";
import type { TrainingOptions } from "../training-session.ts";
import { componentNames, componentOf, storedValues, type TrainedComponentName } from "./lora.ts";
import { type TrainedEmbeddings, TrainedModelStep, type TrainedPart, untrained } from "./trained-model.ts";

/** As diffusers names the weights of a pipeline's folders. */
export function fullName(component: TrainedComponentName, weight: string): string {
  const inner = component === "unet" || weight.startsWith("text_projection") ? weight : `text_model.${weight}`;
  return `${componentNames[component]}.${inner}`;
}

export function openDreamBoothStep(model: TrainableModel, trainsTexts: boolean, options: TrainingOptions): TrainedModelStep {
  const list = trainedComponents(model, trainsTexts).flatMap(component => componentTensors(model, component));
  const tensors = new TrainedTensors(list.map(({ tensor }) => tensor));
  for (const { tensor, component, weight } of list)
    tensors.value(tensor.name).data.set(storedValues(componentOf(model, component), weight));
  const parts = {
    unet: wholePart("unet", [...model.unet.shapes.keys()]),
    texts: model.textEncoders.map(({ component, shapes }) =>
      trainsTexts ? wholePart(component, [...shapes.keys()].filter(isInGraph)) : untrained,
    ),
    embeddings: trainsTexts ? new TrainedTables(model.textEncoders, tensors) : null,
  };
  return new TrainedModelStep(model, tensors, parts, options);
}

function componentTensors(model: TrainableModel, component: TrainedComponentName) {
  const group = component === "unet" ? "main" : "text";
  return [...componentOf(model, component).shapes].map(([weight, shape]) => {
    const tensor: TrainedTensor = { name: fullName(component, weight), shape, group };
    return { tensor, component, weight };
  });
}

/** What `openDreamBoothStep` begins with, read from the model's files. */
export function baseWeights(model: TrainableModel, trainsTexts: boolean): BaseWeights {
  const places = new Map(
    trainedComponents(model, trainsTexts)
      .flatMap(component => componentTensors(model, component))
      .map(found => [found.tensor.name, found]),
  );
  return name => {
    const { component, weight } = places.get(name)!;
    return storedValues(componentOf(model, component), weight);
  };
}

/** What of a model is trained. */
export function trainedComponents(model: TrainableModel, trainsTexts: boolean): TrainedComponentName[] {
  return ["unet", ...(trainsTexts ? model.textEncoders.map(({ component }) => component) : [])];
}

/** Tables are read outside the graph. */
function isInGraph(weight: string): boolean {
  return !Object.values<string>(embeddingTables).includes(weight);
}

/** The trained tensors of a step as a model's files hold them. */
export function trainedWeight(tensors: TrainedTensors): TrainedWeight {
  const names = new Set(tensors.list.map(({ name }) => name));
  return (component, weight) => {
    const name = component === "vae" ? null : fullName(component, weight);
    return name !== null && names.has(name) ? tensors.value(name).data : null;
  };
}

function wholePart(component: TrainedComponentName, weights: readonly string[]): TrainedPart {
  const inputs = new Map(weights.map(weight => [weight, fullName(component, weight)]));
  return { layers: { weights: new Set(weights), pairs: new Map() }, inputs, held: new Map() };
}

/** The token and position tables of text encoders as trained tensors. */
class TrainedTables implements TrainedEmbeddings {
  readonly #encoders: readonly TextEncoderBase[];
  readonly #tensors: TrainedTensors;

  constructor(encoders: readonly TextEncoderBase[], tensors: TrainedTensors) {
    this.#encoders = encoders;
    this.#tensors = tensors;
  }

  embed(encoder: number, ids: readonly (readonly number[])[], adapted: boolean): TensorF32 {
    const { component, embeddings } = this.#encoders[encoder]!;
    const trained = (table: EmbeddingTableName): Float32Array => this.#tensors.value(fullName(component, embeddingTables[table])).data;
    return embeddings.embed(ids, undefined, adapted ? { tokens: trained("tokens"), positions: trained("positions") } : {});
  }

  backward(encoder: number, ids: readonly (readonly number[])[], { data }: TensorF32): void {
    const { component, config } = this.#encoders[encoder]!;
    const { width } = config;
    const tokens = this.#tensors.gradient(fullName(component, embeddingTables.tokens)).data;
    const positions = this.#tensors.gradient(fullName(component, embeddingTables.positions)).data;
    const length = ids[0]!.length;
    ids.flat().forEach((id, row) => {
      const position = (row % length) * width;
      for (let i = 0; i < width; i++) {
        tokens[id * width + i]! += data[row * width + i]!;
        positions[position + i]! += data[row * width + i]!;
      }
    });
  }
}
