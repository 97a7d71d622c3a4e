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

/** The UNet with the inputs of a part, and the texts that it reads. */
class AdapterSessions {
  readonly unet: UnetStep;
  readonly #model: TrainableModel;
  readonly #options: TrainingOptions;
  readonly #text: TextStep;
  /** The base model's, opened when first asked for. */
  #base: UnetStep | null = null;

  constructor(model: TrainableModel, { features, wrt }: AdapterPart, options: TrainingOptions) {
    this.#model = model;
    this.#options = options;
    this.unet = new UnetStep(model.unet, features, wrt, options);
    const plain = model.textEncoders.map(() => ({ trained: null, wrt: [] }));
    this.#text = new TextStep(model, plain, options);
  }

  get base(): UnetStep {
    this.#base ??= new UnetStep(this.#model.unet, {}, [], this.#options);
    return this.#base;
  }

  async texts({ encoderHiddenStates, added, inputIds }: StepBatch): Promise<BatchTexts> {
    if (encoderHiddenStates) return { encoderHiddenStates, pooled: added?.textEmbeds ?? null };
    const feeds = this.#model.textEncoders.map(({ embeddings }, i) => ({ [embeddingsInput]: embeddings.embed(inputIds[i]!) }));
    return this.#text.states(inputIds, feeds);
  }

  async release(): Promise<void> {
    for (const held of [this.unet, this.#text, ...(this.#base ? [this.#base] : [])]) await held.release();
  }
}

export class AdapterStep implements TrainingStep {
  readonly tensors: TrainedTensors;
  readonly #part: AdapterPart;
  readonly #sessions: AdapterSessions;

  constructor(model: TrainableModel, part: AdapterPart, options: TrainingOptions) {
    this.tensors = part.tensors;
    this.#part = part;
    this.#sessions = new AdapterSessions(model, part, options);
  }

  async gradients(batch: StepBatch): Promise<readonly number[]> {
    return partGradients(this.#part, this.#sessions, batch);
  }

  async losses(batch: StepBatch, adapted: boolean): Promise<readonly number[]> {
    return partLosses(this.#part, this.#sessions, batch, adapted);
  }

  async release(): Promise<void> {
    await this.#sessions.release();
    await this.#part.release();
  }

  /** A step over another part of the same features, in the sessions of this one, which outlives it. */
  withPart(part: AdapterPart): TrainingStep {
    return {
      tensors: part.tensors,
      gradients: batch => partGradients(part, this.#sessions, batch),
      losses: (batch, adapted) => partLosses(part, this.#sessions, batch, adapted),
      release: () => part.release(),
    };
  }
}

async function partGradients(part: AdapterPart, sessions: AdapterSessions, batch: StepBatch): Promise<readonly number[]> {
  const texts = await sessions.texts(batch);
  const { losses, gradients } = await sessions.unet.gradients(batch, texts, await part.forward(batch, texts));
  await part.backward(batch, texts, gradients);
  return losses;
}

async function partLosses(part: AdapterPart, sessions: AdapterSessions, batch: StepBatch, adapted: boolean): Promise<readonly number[]> {
  const texts = await sessions.texts(batch);
  if (adapted) return sessions.unet.losses(batch, texts, await part.forward(batch, texts));
  return sessions.base.losses(batch, texts, {});
}
