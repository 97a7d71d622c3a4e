/** Textual inversion (Gal et al. 2022): rows of the embedding table for new tokens, all else as it is. */
import type { TensorF32, TextEncoderBase, TrainableModel } from "../../components.ts";
import { TrainedTensors } from "../trained-tensors.ts";
import type { TrainingOptions } from "../training-session.ts";
import { componentNames } from "./lora.ts";
import { type TrainedEmbeddings, TrainedModelStep, untrained } from "./trained-model.ts";

/** The rows of one text encoder, all concepts' one after another. */
export function rowsName({ component }: Pick<TextEncoderBase, "component">): string {
  return `${componentNames[component]}.rows`;
}

/** @param start what the rows begin as, [n, C] of each text encoder */
export function openInversionStep(model: TrainableModel, start: readonly TensorF32[], options: TrainingOptions): TrainedModelStep {
  const { textEncoders } = model;
  const tensors = new TrainedTensors(
    textEncoders.map((encoder, i) => ({ name: rowsName(encoder), shape: start[i]!.shape, group: "main" as const })),
  );
  textEncoders.forEach((encoder, i) => {
    tensors.value(rowsName(encoder)).data.set(start[i]!.data);
  });
  const parts = { unet: untrained, texts: textEncoders.map(() => untrained), embeddings: new TrainedRows(textEncoders, tensors) };
  return new TrainedModelStep(model, tensors, parts, options);
}

/** The rows of these ids' tokens, repeated in their order until there are `count`, for each of `concepts`. */
export function initialRows({ embeddings }: TextEncoderBase, ids: readonly number[], count: number, concepts: number): TensorF32 {
  return embeddings.tokenRows(Array.from({ length: concepts * count }, (_, row) => ids[(row % count) % ids.length]!));
}

class TrainedRows implements TrainedEmbeddings {
  readonly #encoders: readonly TextEncoderBase[];
  readonly #tensors: TrainedTensors;
  /** What the rows began as: those of a model that was not trained. */
  readonly #start: readonly TensorF32[];

  constructor(encoders: readonly TextEncoderBase[], tensors: TrainedTensors) {
    this.#encoders = encoders;
    this.#tensors = tensors;
    this.#start = encoders.map(encoder => {
      const { data, shape } = tensors.value(rowsName(encoder));
      return { data: data.slice(), shape };
    });
  }

  embed(encoder: number, ids: readonly (readonly number[])[], adapted: boolean): TensorF32 {
    const base = this.#encoders[encoder]!;
    return base.embeddings.embed(ids, adapted ? this.#tensors.value(rowsName(base)) : this.#start[encoder]!);
  }

  backward(encoder: number, ids: readonly (readonly number[])[], { data }: TensorF32): void {
    const base = this.#encoders[encoder]!;
    const { width, vocabularySize } = base.config;
    const into = this.#tensors.gradient(rowsName(base)).data;
    ids.flat().forEach((id, row) => {
      if (id < vocabularySize) return;
      const start = (id - vocabularySize) * width;
      for (let i = 0; i < width; i++) into[start + i]! += data[row * width + i]!;
    });
  }
}
