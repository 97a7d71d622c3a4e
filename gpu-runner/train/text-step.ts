/** The text encoders' share of a training step: the states that the UNet reads, and gradients from their cotangents. */
import { cotangentName, gradientName } from "../autodiff/differentiate.ts";
import type { TensorF32, TextEncoderBase, TrainableModel } from "../components.ts";
import { buildTextEncoder, hiddenName, normedName, poolingPosition } from "../models/clip-text.ts";
import type { TrainedLayers } from "../models/layers.ts";
import type { Feeds } from "../session.ts";
import { type TrainingOptions, TrainingSession } from "./training-session.ts";
import { type BatchTexts, numericInputs } from "./unet-step.ts";

export const embeddingsInput = "embeddings";

/** Which states the family's UNet reads of an encoder, and whether its pooled state too. */
interface Reading {
  states: string;
  pooled: string | null;
}

interface Encoder {
  base: TextEncoderBase;
  reading: Reading;
  wrt: readonly string[];
  session: TrainingSession;
  inputShapes: ReadonlyMap<string, readonly number[]>;
}

export interface TextStepEncoder {
  trained: TrainedLayers | null;
  /** Inputs whose gradients are wanted; `embeddings` are the token and position rows [B, L, C]. */
  wrt: readonly string[];
}

export class TextStep {
  readonly #encoders: readonly Encoder[];

  /** @param parts one per text encoder */
  constructor(model: TrainableModel, parts: readonly TextStepEncoder[], options: TrainingOptions) {
    this.#encoders = model.textEncoders.map((base, i) => {
      const { trained, wrt } = parts[i]!;
      const reading = readingOf(model, i);
      const graph = buildTextEncoder(base.config, base.weights, null, trained);
      const outputs = [reading.states, ...(reading.pooled ? [reading.pooled] : [])];
      const session = new TrainingSession({ graph, outputs, of: outputs, wrt }, options);
      return { base, reading, wrt, session, inputShapes: numericInputs(graph) };
    });
  }

  inputShapes(encoder: number): ReadonlyMap<string, readonly number[]> {
    return this.#encoders[encoder]!.inputShapes;
  }

  /** @param feeds of each encoder: `embeddings` and what is trained */
  async states(inputIds: readonly (readonly (readonly number[])[])[], feeds: readonly Feeds[]): Promise<BatchTexts> {
    const states: TensorF32[] = [];
    let pooled: TensorF32 | null = null;
    for (const [i, { session, reading, base }] of this.#encoders.entries()) {
      const results = await session.forward(feeds[i]!);
      states.push(results[reading.states]!);
      if (reading.pooled) pooled = pickRows(results[reading.pooled]!, positions(base, inputIds[i]!));
    }
    return { encoderHiddenStates: joined(states), pooled };
  }

  /** Of each encoder the gradients by input, from those in what `states` gave. */
  async gradients(
    inputIds: readonly (readonly (readonly number[])[])[],
    feeds: readonly Feeds[],
    cotangents: BatchTexts,
  ): Promise<Record<string, TensorF32>[]> {
    const all: Record<string, TensorF32>[] = [];
    let from = 0;
    for (const [i, { session, reading, base, wrt }] of this.#encoders.entries()) {
      const { width, projectionWidth } = base.config;
      const states = columns(cotangents.encoderHiddenStates, from, width);
      from += width;
      if (wrt.length === 0) {
        all.push({});
        continue;
      }
      const pooled = reading.pooled && {
        [cotangentName(reading.pooled)]: spreadRows(
          cotangents.pooled!,
          positions(base, inputIds[i]!),
          states.shape[1]!,
          projectionWidth ?? width,
        ),
      };
      const results = await session.gradients({ ...feeds[i]!, [cotangentName(reading.states)]: states, ...pooled });
      all.push(Object.fromEntries(wrt.map(name => [name, results[gradientName(name)]!])));
    }
    return all;
  }

  async release(): Promise<void> {
    for (const { session } of this.#encoders) await session.release();
  }
}

/** SD 1 and 2 read the normed last state; SDXL the raw ones before the last layer, and the last encoder's pooled state. */
function readingOf({ description: { addedConditions }, textEncoders }: TrainableModel, encoder: number): Reading {
  if (!addedConditions) return { states: normedName(0), pooled: null };
  const { projectionWidth } = textEncoders[encoder]!.config;
  const isLast = encoder === textEncoders.length - 1;
  return { states: hiddenName(1), pooled: isLast ? (projectionWidth === null ? normedName(0) : "projected") : null };
}

function positions({ config }: TextEncoderBase, ids: readonly (readonly number[])[]): number[] {
  return ids.map(row => poolingPosition(row, config));
}

function pickRows({ data, shape }: TensorF32, rows: readonly number[]): TensorF32 {
  const [batch, length, width] = shape as [number, number, number];
  const out = new Float32Array(batch * width);
  rows.forEach((row, b) => {
    const start = (b * length + row) * width;
    out.set(data.subarray(start, start + width), b * width);
  });
  return { data: out, shape: [batch, width] };
}

/** [B, C] to rows of zeros [B, L, C] but for one of each item. */
function spreadRows({ data, shape }: TensorF32, rows: readonly number[], length: number, width: number): TensorF32 {
  const batch = shape[0]!;
  const out = new Float32Array(batch * length * width);
  rows.forEach((row, b) => {
    out.set(data.subarray(b * width, (b + 1) * width), (b * length + row) * width);
  });
  return { data: out, shape: [batch, length, width] };
}

function joined(states: readonly TensorF32[]): TensorF32 {
  if (states.length === 1) return states[0]!;
  const [batch, length] = states[0]!.shape as [number, number, number];
  const total = states.reduce((sum, { shape }) => sum + shape[2]!, 0);
  const data = new Float32Array(batch * length * total);
  let from = 0;
  for (const { data: part, shape } of states) {
    const width = shape[2]!;
    for (let row = 0; row < batch * length; row++) data.set(part.subarray(row * width, (row + 1) * width), row * total + from);
    from += width;
  }
  return { data, shape: [batch, length, total] };
}

/** Columns from .. from + width - 1 of [B, L, C]. */
function columns({ data, shape }: TensorF32, from: number, width: number): TensorF32 {
  const [batch, length, total] = shape as [number, number, number];
  if (width === total) return { data, shape };
  const out = new Float32Array(batch * length * width);
  for (let row = 0; row < batch * length; row++) out.set(data.subarray(row * total + from, row * total + from + width), row * width);
  return { data: out, shape: [batch, length, width] };
}
