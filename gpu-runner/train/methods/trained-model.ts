/** A step of methods that train parts of the base model: tensors that UNet and text encoders read as inputs. */
import type { TensorF32, TrainableModel } from "../../components.ts";
import type { TrainedLayers } from "../../models/layers.ts";
import type { Feeds } from "../../session.ts";
import { addInto } from "../flat-weights.ts";
import type { StepBatch, TrainingStep } from "../step.ts";
import { embeddingsInput, TextStep } from "../text-step.ts";
import type { TrainedTensors } from "../trained-tensors.ts";
import type { TrainingOptions } from "../training-session.ts";
import { type BatchTexts, UnetStep } from "../unet-step.ts";

/** What of one component is trained. */
export interface TrainedPart {
  layers: TrainedLayers;
  /** The trained tensor of each input. */
  inputs: ReadonlyMap<string, string>;
  /** Inputs that have a trained tensor's values but take no gradient. */
  held: ReadonlyMap<string, string>;
}

/** Rows of embeddings that are trained. */
export interface TrainedEmbeddings {
  /** Token and position rows [B, L, C]. */
  embed(encoder: number, ids: readonly (readonly number[])[], adapted: boolean): TensorF32;
  /** Adds the gradient of what `embed` gave to the trained tensors. */
  backward(encoder: number, ids: readonly (readonly number[])[], gradient: TensorF32): void;
}

export interface TrainedModelParts {
  unet: TrainedPart;
  /** One per text encoder. */
  texts: readonly TrainedPart[];
  /** Null: as they are. */
  embeddings: TrainedEmbeddings | null;
}

export const untrained: TrainedPart = { layers: { weights: new Set(), pairs: new Map() }, inputs: new Map(), held: new Map() };

/** What of SDXL's pooled text the UNet reads: the first columns of this input. */
const addedInput = "added_conditions";
const statesInput = "encoder_hidden_states";

interface Sessions {
  unet: UnetStep;
  text: TextStep;
}

export class TrainedModelStep implements TrainingStep {
  readonly tensors: TrainedTensors;
  readonly #model: TrainableModel;
  readonly #parts: TrainedModelParts;
  readonly #options: TrainingOptions;
  readonly #sessions: Sessions;
  readonly #trainsTexts: boolean;
  /** The base model's, opened when first asked for. */
  #base: Sessions | null = null;

  constructor(model: TrainableModel, tensors: TrainedTensors, parts: TrainedModelParts, options: TrainingOptions) {
    this.tensors = tensors;
    this.#model = model;
    this.#parts = parts;
    this.#options = options;
    this.#trainsTexts = parts.embeddings !== null || parts.texts.some(({ inputs }) => inputs.size > 0);
    const texts = this.#trainsTexts ? [statesInput, ...(model.description.addedConditions ? [addedInput] : [])] : [];
    const textWrt = (part: TrainedPart): string[] => [...part.inputs.keys(), ...(parts.embeddings ? [embeddingsInput] : [])];
    this.#sessions = {
      unet: new UnetStep(model.unet, { trained: parts.unet.layers }, [...parts.unet.inputs.keys(), ...texts], options),
      text: new TextStep(
        model,
        parts.texts.map(part => ({ trained: part.layers, wrt: textWrt(part) })),
        options,
      ),
    };
  }

  async gradients(batch: StepBatch): Promise<readonly number[]> {
    const { unet, text } = this.#sessions;
    const textFeeds = this.#trainsTexts || !batch.encoderHiddenStates ? this.#textFeeds(batch, true) : null;
    const texts = textFeeds ? await text.states(batch.inputIds, textFeeds) : cachedTexts(batch);
    const { losses, gradients } = await unet.gradients(batch, texts, this.#feeds(this.#parts.unet, unet.inputShapes));
    this.#add(this.#parts.unet, gradients);
    if (!textFeeds || !this.#trainsTexts) return losses;
    const cotangents = { encoderHiddenStates: gradients[statesInput]!, pooled: firstColumns(gradients[addedInput], texts.pooled) };
    const ofTexts = await text.gradients(batch.inputIds, textFeeds, cotangents);
    ofTexts.forEach((found, encoder) => {
      this.#add(this.#parts.texts[encoder]!, found);
      if (found[embeddingsInput]) this.#parts.embeddings?.backward(encoder, batch.inputIds[encoder]!, found[embeddingsInput]);
    });
    return losses;
  }

  async losses(batch: StepBatch, adapted: boolean): Promise<readonly number[]> {
    const { unet, text } = adapted ? this.#sessions : this.#baseSessions();
    const needsText = this.#trainsTexts || !batch.encoderHiddenStates;
    const texts = needsText ? await text.states(batch.inputIds, this.#textFeeds(batch, adapted)) : cachedTexts(batch);
    return unet.losses(batch, texts, adapted ? this.#feeds(this.#parts.unet, unet.inputShapes) : {});
  }

  async release(): Promise<void> {
    for (const { unet, text } of [this.#sessions, ...(this.#base ? [this.#base] : [])]) {
      await unet.release();
      await text.release();
    }
  }

  #baseSessions(): Sessions {
    const { textEncoders, unet } = this.#model;
    const plain = textEncoders.map(() => ({ trained: null, wrt: [] }));
    this.#base ??= { unet: new UnetStep(unet, {}, [], this.#options), text: new TextStep(this.#model, plain, this.#options) };
    return this.#base;
  }

  #textFeeds({ inputIds }: StepBatch, adapted: boolean): Feeds[] {
    return this.#model.textEncoders.map(({ embeddings }, encoder) => {
      const ids = inputIds[encoder]!;
      const rows = this.#parts.embeddings?.embed(encoder, ids, adapted) ?? embeddings.embed(ids);
      const trained = adapted ? this.#feeds(this.#parts.texts[encoder]!, this.#sessions.text.inputShapes(encoder)) : {};
      return { [embeddingsInput]: rows, ...trained };
    });
  }

  /** Trained tensors where they lie, in the shapes that the graph has them. */
  #feeds({ inputs, held }: TrainedPart, shapes: ReadonlyMap<string, readonly number[]>): Feeds {
    return Object.fromEntries(
      [...inputs, ...held].map(([input, name]) => [input, { data: this.tensors.value(name).data, shape: shapes.get(input)! }]),
    );
  }

  #add({ inputs }: TrainedPart, gradients: Readonly<Record<string, TensorF32>>): void {
    for (const [input, name] of inputs) addInto(this.tensors.gradient(name).data, gradients[input]!.data);
  }
}

function cachedTexts({ encoderHiddenStates, added }: StepBatch): BatchTexts {
  return { encoderHiddenStates: encoderHiddenStates!, pooled: added?.textEmbeds ?? null };
}

/** The gradient's columns that belong to `like`, [B, P]. */
function firstColumns(gradient: TensorF32 | undefined, like: TensorF32 | null): TensorF32 | null {
  if (!gradient || !like) return null;
  const [batch, width] = like.shape as [number, number];
  const total = gradient.shape[1]!;
  const data = new Float32Array(batch * width);
  for (let row = 0; row < batch; row++) data.set(gradient.data.subarray(row * total, row * total + width), row * width);
  return { data, shape: [batch, width] };
}
