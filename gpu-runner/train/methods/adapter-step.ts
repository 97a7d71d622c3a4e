/** A step of methods that train an adapter: it makes inputs of the UNet, and gets the gradients in these back. */
import type { TensorF32, TrainableModel } from "../../components.ts";
import type { UnetFeatures } from "../../models/unet.ts";
import type { Feeds } from "../../session.ts";
import type { StepBatch, TrainingStep } from "../step.ts";
import { embeddingsInput, TextStep } from "../text-step.ts";
import type { TrainedTensors } from "../trained-tensors.ts";
import type { TrainingOptions } from "../training-session.ts";
import { type BatchTexts, UnetStep } from "../unet-step.ts";

/** What stands between the trained tensors and the UNet. */
export interface AdapterPart {
  readonly tensors: TrainedTensors;
  /** Of the UNet that reads it. */
  readonly features: Partial<UnetFeatures>;
  /** Inputs of that UNet whose gradients `backward` wants. */
  readonly wrt: readonly string[];
  /** All inputs that the features bring. */
  forward(batch: StepBatch, texts: BatchTexts): Promise<Feeds>;
  /** Adds to `tensors.gradients` what follows from those of the UNet's inputs; the batch is that of the last `forward`. */
  backward(batch: StepBatch, texts: BatchTexts, gradients: Readonly<Record<string, TensorF32>>): Promise<void>;
  release(): Promise<void>;
}

export class AdapterStep implements TrainingStep {
  readonly tensors: TrainedTensors;
  readonly #model: TrainableModel;
  readonly #part: AdapterPart;
  readonly #options: TrainingOptions;
  readonly #unet: UnetStep;
  readonly #text: TextStep;
  /** The base model's, opened when first asked for. */
  #base: UnetStep | null = null;

  constructor(model: TrainableModel, part: AdapterPart, options: TrainingOptions) {
    this.tensors = part.tensors;
    this.#model = model;
    this.#part = part;
    this.#options = options;
    this.#unet = new UnetStep(model.unet, part.features, part.wrt, options);
    const plain = model.textEncoders.map(() => ({ trained: null, wrt: [] }));
    this.#text = new TextStep(model, plain, options);
  }

  async gradients(batch: StepBatch): Promise<readonly number[]> {
    const texts = await this.#texts(batch);
    const { losses, gradients } = await this.#unet.gradients(batch, texts, await this.#part.forward(batch, texts));
    await this.#part.backward(batch, texts, gradients);
    return losses;
  }

  async losses(batch: StepBatch, adapted: boolean): Promise<readonly number[]> {
    const texts = await this.#texts(batch);
    if (adapted) return this.#unet.losses(batch, texts, await this.#part.forward(batch, texts));
    this.#base ??= new UnetStep(this.#model.unet, {}, [], this.#options);
    return this.#base.losses(batch, texts, {});
  }

  async release(): Promise<void> {
    for (const held of [this.#unet, this.#text, this.#part, ...(this.#base ? [this.#base] : [])]) await held.release();
  }

  async #texts({ encoderHiddenStates, added, inputIds }: StepBatch): Promise<BatchTexts> {
    if (encoderHiddenStates) return { encoderHiddenStates, pooled: added?.textEmbeds ?? null };
    const feeds = this.#model.textEncoders.map(({ embeddings }, i) => ({ [embeddingsInput]: embeddings.embed(inputIds[i]!) }));
    return this.#text.states(inputIds, feeds);
  }
}
