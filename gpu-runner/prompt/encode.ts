/** From chunks to what the UNet reads: each chunk through the encoder, weighted, one after another. */
import type { DiffusionModel, LoraUse, TensorF32 } from "../components.ts";
import type { ClipTokenizer } from "../tokenizer/clip.ts";
import type { Chunk } from "./chunks.ts";

/** Which hidden states an encoder gives. */
export interface StateChoice {
  /** Whether the final layer norm is applied: SD 1 and 2 do, SDXL doesn't. */
  normed: boolean;
  /** Layers left out at the end. */
  skip: number;
}

export interface PromptEncoding {
  /** [1, chunks * positions, C] */
  states: TensorF32;
  /** Of the first chunk, [1, C]. */
  pooled: TensorF32;
}

export interface EncodePromptArgs {
  encoder: number;
  tokenizer: ClipTokenizer;
  chunks: readonly Chunk[];
  choice: StateChoice;
  extraEmbeddings?: TensorF32;
  loras?: readonly LoraUse[];
}

/**
 * Weights multiply the states of their tokens; then the chunk's mean is brought back to what it was, as A1111's "original" emphasis does
 * (which takes the mean over a whole batch of texts: here each is by itself).
 */
export async function encodePrompt(model: DiffusionModel, args: EncodePromptArgs): Promise<PromptEncoding> {
  const { encoder, tokenizer, chunks, choice, extraEmbeddings, loras } = args;
  const encoding = await model.encodeText({
    encoder,
    inputIds: chunks.map(({ ids }) => tokenizer.chunk(ids)),
    ...(extraEmbeddings && { extraEmbeddings }),
    ...(loras?.length && { loras: chunks.map(() => loras) }),
  });
  const { data, shape } = choice.normed ? encoding.normed(choice.skip) : encoding.hidden(choice.skip);
  const [, length, width] = shape as [number, number, number];
  const states = data.slice();
  for (const [i, { weights }] of chunks.entries()) weigh(states.subarray(i * length * width, (i + 1) * length * width), width, weights);
  const pooledWidth = encoding.pooled.shape[1]!;
  return {
    states: { data: states, shape: [1, chunks.length * length, width] },
    pooled: { data: encoding.pooled.data.slice(0, pooledWidth), shape: [1, pooledWidth] },
  };
}

/** The first state is bos's. */
function weigh(states: Float32Array, width: number, weights: readonly number[]): void {
  if (weights.every(weight => weight === 1)) return;
  const before = mean(states);
  for (const [i, weight] of weights.entries()) {
    const start = (i + 1) * width;
    for (let k = start; k < start + width; k++) states[k]! *= weight;
  }
  const after = mean(states);
  // A mean of zero cannot be brought back by a factor.
  const factor = after === 0 ? 1 : before / after;
  for (let k = 0; k < states.length; k++) states[k]! *= factor;
}

function mean(values: Float32Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
