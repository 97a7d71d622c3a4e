/** From prepared items to what a step reads: noise mixed in, loss weights, texts, maps. */
import type { LossSettings, TrainingRequest } from "../../shared/training.ts";
import type { TensorF32 } from "../components.ts";
import type { PictureModel } from "../pipeline/context.ts";
import { concatItems } from "../pipeline/tensors.ts";
import { promptChunks } from "../prompt/chunks.ts";
import { cumulativeAlphas } from "../schedulers/betas.ts";
import { samplerConfig } from "../schedulers/config.ts";
import type { EmbedReference } from "./context.ts";
import { type CaptionStates, controlMapOf, type PreparedItem } from "./dataset.ts";
import { noiseBatch } from "./loss.ts";
import type { StepBatch } from "./step.ts";

/** One place of a batch with every choice made. */
export interface BatchItem {
  source: PreparedItem;
  caption: string;
  timestep: number;
  isFlipped: boolean;
  /** Whether the reference picture or the control map is left out. */
  dropsCondition: boolean;
  /** Unit noise [C, h, w]. */
  noise: Float32Array;
  /** Of the item's loss. */
  weight: number;
  /** hyper-lora: latents [C, h, w] of a picture of the same concept and size, and whether its pairs are predicted from these. */
  reference?: { latents: Float32Array; isUsed: boolean };
}

export interface BatchSettings {
  request: TrainingRequest;
  model: PictureModel;
  /** Of the forward process, one per timestep. */
  alphas: Float32Array;
  /** Null where text encoders are trained: then batches hold token ids alone. */
  captions: CaptionStates | null;
  /** Evaluation: captions as the adapter has them read; absent: as the base does. */
  adaptedCaptions?: CaptionStates;
  /** Whether batches hold control maps. */
  readsMaps?: boolean;
  /** IP-Adapter: what the image projection reads of a picture. */
  embed?: EmbedReference;
  /** True: new tokens are read as the plain text that they are, as the base model reads them. */
  readsPlainTokens?: boolean;
  /** hyper-lora: the share of a training's items that are predicted from a picture. */
  referenceShare?: number;
}

/** Cumulative alphas of the model's forward process, with zero terminal SNR where the request says so (Lin et al. 2024). */
export function trainingAlphas(
  { model }: { model: Pick<PictureModel["model"], "description"> },
  { zero_terminal_snr }: LossSettings,
): Float32Array {
  const { schedulerConfig, family } = model.description;
  const config = samplerConfig("ddim", {}, schedulerConfig, family);
  return cumulativeAlphas(zero_terminal_snr === null ? config : { ...config, rescale_betas_zero_snr: zero_terminal_snr });
}

/** @param gamma of min-SNR; null for losses that are compared rather than trained on */
export async function assembleBatch(settings: BatchSettings, items: readonly BatchItem[], gamma: number | null): Promise<StepBatch> {
  const { model, alphas, captions } = settings;
  const { latentChannels, predictionType, vaeScaleFactor, addedConditions } = model.model.description;
  const { width, height } = items[0]!.source.size;
  const [h, w] = [height / vaeScaleFactor, width / vaeScaleFactor];
  const mixed = noiseBatch(
    items.map(({ source, isFlipped, noise, timestep, weight }) => ({
      latents: source.latents[isFlipped ? 1 : 0]!,
      noise,
      alpha: alphas[timestep]!,
      mask: source.masks?.[isFlipped ? 1 : 0] ?? null,
      weight,
    })),
    { predictsVelocity: predictionType === "v_prediction", minSnrGamma: gamma, shape: [latentChannels, h, w] },
  );
  const reading = settings.readsPlainTokens ? captions : (settings.adaptedCaptions ?? captions);
  const states = reading && (await Promise.all(items.map(({ caption }) => reading.of(caption))));
  return {
    ...mixed,
    timesteps: items.map(({ timestep }) => timestep),
    inputIds: idsOf(
      settings,
      items.map(({ caption }) => caption),
    ),
    encoderHiddenStates: states && concatItems(states.map(found => found.states)),
    added: addedConditions && {
      textEmbeds: states && concatItems(states.map(found => found.pooled)),
      timeIds: concatItems(items.map(({ source: { timeIds } }) => ({ data: Float32Array.from(timeIds), shape: [1, timeIds.length] }))),
    },
    controlMap: settings.readsMaps ? concatItems(await Promise.all(items.map(mapOf))) : null,
    imageEmbeds: settings.embed ? await embedded(items, settings.embed) : null,
    concepts: items.map(({ source }) => source.item.concept),
    references: referencesOf(items, [latentChannels, h, w]),
  };
}

/** Null unless every item has one. */
function referencesOf(items: readonly BatchItem[], shape: readonly number[]): StepBatch["references"] {
  const found = items.flatMap(({ reference }) => reference ?? []);
  if (found.length < items.length) return null;
  return {
    latents: concatItems(found.map(({ latents }) => ({ data: latents, shape: [1, ...shape] }))),
    used: found.map(({ isUsed }) => isUsed),
    weights: items.map(({ weight }) => weight),
  };
}

async function mapOf({ source, isFlipped, dropsCondition }: BatchItem): Promise<TensorF32> {
  const map = await controlMapOf(source, isFlipped);
  return dropsCondition ? { ...map, data: new Float32Array(map.data.length) } : map;
}

async function embedded(items: readonly BatchItem[], embed: EmbedReference): Promise<TensorF32> {
  const rows: TensorF32[] = [];
  // One after the other: an encoder's activations are large.
  for (const { source, isFlipped, dropsCondition } of items) rows.push(await embed(dropsCondition ? null : { source, isFlipped }));
  return concatItems(rows);
}

/** Ids by text encoder; a new token's rows follow the vocabulary, concept after concept. */
function idsOf(
  { request: { settings, concepts }, model: { model, tokenizers }, readsPlainTokens = false }: BatchSettings,
  captions: readonly string[],
): number[][][] {
  return tokenizers.map((tokenizer, encoder) => {
    const { vocabularySize } = model.description.textEncoders[encoder]!;
    const vectors = settings.method === "textual-inversion" && !readsPlainTokens ? settings.vectors : 0;
    const words =
      vectors === 0
        ? []
        : concepts.map(({ token }, i) => ({
            word: token,
            ids: Array.from({ length: vectors }, (_, row) => vocabularySize + i * vectors + row),
          }));
    return captions.map(caption => tokenizer.chunk(promptChunks(caption, "plain", tokenizer, words)[0]!.ids));
  });
}
