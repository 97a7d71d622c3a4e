/** What the UNet reads of an item's prompts at a step: hidden states, and SDXL's pooled state and sizes. */
import type { ModelFamily } from "../../shared/model.ts";
import type { PromptSyntax } from "../../shared/picture.ts";
import type { TensorF32 } from "../components.ts";
import { type Chunk, promptChunks } from "../prompt/chunks.ts";
import { encodePrompt, type PromptEncoding, type StateChoice } from "../prompt/encode.ts";
import { isConstant, type PromptStep, parseSchedule, promptAt, type ScheduledPrompt } from "../prompt/schedule.ts";
import type { PictureModel } from "./context.ts";
import type { ItemAdapters } from "./item-adapters.ts";
import { concatWidths } from "./tensors.ts";

export interface TextStates {
  /** [1, L, cross-attention width] */
  states: TensorF32;
  /** SDXL: [1, P] */
  pooled: TensorF32;
}

export interface TextSettings {
  prompt: string;
  /** For the second encoder; null: the same. */
  prompt2: string | null;
  /** Null: none, for which SDXL takes zeros. */
  negativePrompt: string | null;
  negativePrompt2: string | null;
  syntax: PromptSyntax;
  clipSkip: number;
  /** Reference cases only: diffusers' pipelines cut a prompt after its first chunk. */
  mostChunks?: number;
}

/** Both halves at a step; what was encoded is kept. */
export interface ItemTexts {
  at(step: PromptStep): Promise<{ conditional: TextStates; unconditional: TextStates | null }>;
}

interface Encoder {
  index: number;
  choice(skip: number): StateChoice;
}

const normed: Encoder["choice"] = skip => ({ normed: true, skip });
/** SDXL's states are those before the last layer, without the norm. */
const penultimate: Encoder["choice"] = skip => ({ normed: false, skip: skip + 1 });

const encodersOf = {
  sd1: [{ index: 0, choice: normed }],
  sd2: [{ index: 0, choice: normed }],
  sdxl: [
    { index: 0, choice: penultimate },
    { index: 1, choice: penultimate },
  ],
  "sdxl-refiner": [{ index: 0, choice: penultimate }],
} as const satisfies Record<ModelFamily, readonly Encoder[]>;

/**
 * @param isGuided without guidance nothing is encoded of the negative prompt
 * As in diffusers, `clipSkip` leaves the negative prompt alone; as in A1111, not in its syntax.
 */
export function itemTexts(pictureModel: PictureModel, settings: TextSettings, adapters: ItemAdapters, isGuided: boolean): ItemTexts {
  const { family, addedConditions } = pictureModel.model.description;
  const { prompt, negativePrompt, syntax, clipSkip } = settings;
  // A refiner has only the second encoder's kind.
  const second = family === "sdxl-refiner" ? 0 : 1;
  const parse = (text: string): ScheduledPrompt => (syntax === "a1111" ? parseSchedule(refuseUnsupported(text)) : [text]);
  const texts = (first: string, other: string | null) =>
    encodersOf[family].map(({ index }) => parse(index === second && other !== null ? other : first));
  const prompts = texts(prompt, settings.prompt2);
  const negatives = texts(negativePrompt ?? "", settings.negativePrompt2);
  const negativeSkip = syntax === "a1111" ? clipSkip : 0;
  const takesZeros = addedConditions?.forceZerosForEmptyPrompt ?? false;
  const hasZeros = takesZeros && negativePrompt === null && settings.negativePrompt2 === null;
  const constant = [...prompts, ...negatives].every(isConstant);
  const encode = memoized(pictureModel, adapters);

  const compute = async (step: PromptStep) => {
    const chunked = (list: readonly ScheduledPrompt[]) =>
      list.map((text, i) =>
        promptChunks(promptAt(text, step), syntax, pictureModel.tokenizers[i]!, adapters.inversions[i]?.words).slice(
          0,
          settings.mostChunks,
        ),
      );
    const [positive, negative] = [chunked(prompts), chunked(isGuided && !hasZeros ? negatives : [])];
    const count = (lists: readonly (readonly Chunk[])[]) => Math.max(...lists.map(chunks => chunks.length));
    // diffusers wants both halves equally long, and A1111 computes them apart where they are not.
    const together = syntax === "plain" ? count([...positive, ...negative]) : 0;
    const conditional = await encode(positive, Math.max(together, count(positive)), clipSkip);
    if (!isGuided) return { conditional, unconditional: null };
    if (hasZeros) return { conditional, unconditional: { states: zerosLike(conditional.states), pooled: zerosLike(conditional.pooled) } };
    return { conditional, unconditional: await encode(negative, Math.max(together, count(negative)), negativeSkip) };
  };
  let kept: ReturnType<typeof compute> | undefined;
  return {
    at(step) {
      if (!constant) return compute(step);
      kept ??= compute(step);
      return kept;
    },
  };
}

/** What A1111 would act upon and this engine does not must not end up as words in the picture. */
function refuseUnsupported(text: string): string {
  if (/\bAND\b/.test(text)) throw new RangeError("prompt: expected no AND in capitals (composed prompts are not supported), got one");
  const tag = text.match(/<(lora|lyco|hypernet):[^>]*>/i);
  if (tag) throw new RangeError(`prompt: expected adapters in the request's own field, got a <${tag[1]}:…> tag`);
  return text;
}

/** Runs all encoders of a model, each chunk list once. */
function memoized({ model, tokenizers }: PictureModel, adapters: ItemAdapters) {
  const done = new Map<string, Promise<TextStates>>();
  const compute = async (lists: readonly (readonly Chunk[])[], count: number, skip: number): Promise<TextStates> => {
    const encodings: PromptEncoding[] = [];
    for (const { index, choice } of encodersOf[model.description.family]) {
      const rows = adapters.inversions[index]?.rows;
      encodings.push(
        await encodePrompt(model, {
          encoder: index,
          tokenizer: tokenizers[index]!,
          chunks: padded(lists[index]!, count),
          choice: choice(skip),
          ...(rows && { extraEmbeddings: rows }),
          loras: adapters.textLoras,
        }),
      );
    }
    const states = encodings.map(encoding => encoding.states).reduce(concatWidths);
    return { states, pooled: encodings.at(-1)!.pooled };
  };
  return (lists: readonly (readonly Chunk[])[], count: number, skip: number) => {
    const key = JSON.stringify([lists, count, skip]);
    const states = done.get(key) ?? compute(lists, count, skip);
    done.set(key, states);
    return states;
  };
}

function padded(chunks: readonly Chunk[], count: number): Chunk[] {
  return [...chunks, ...Array.from({ length: count - chunks.length }, () => ({ ids: [], weights: [] }))];
}

function zerosLike({ data, shape }: TensorF32): TensorF32 {
  return { data: new Float32Array(data.length), shape };
}
