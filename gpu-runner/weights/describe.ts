/** What is known of a model before any session is made. */
import type { ModelFamily, ModelTask } from "../../shared/model.ts";
import { ModelError } from "./model-error.ts";
import type { ModelLayout, ModelSource, TokenizerSource } from "./model-source.ts";

export interface TextEncoderDescription {
  /** Which adapters' parts it takes. */
  component: "textEncoder" | "textEncoder2";
  /** Of its states: what a textual inversion has to fit. */
  width: number;
  maxLength: number;
  layers: number;
  /** Ids from here on are rows of `extraEmbeddings`. */
  vocabularySize: number;
  /** Width of `pooled` where it is projected (`text_embeds`); null: it is not. */
  projectionWidth: number | null;
}

/** Plain data, so it may cross threads. */
export interface ModelDescription {
  /** "sha256:<hex>" over the files that determine the picture. */
  hash: string;
  family: ModelFamily;
  layout: ModelLayout;
  /** Empty for a UNet whose input channels no task has. */
  tasks: readonly ModelTask[];
  predictionType: "epsilon" | "v_prediction" | "sample";
  latentChannels: number;
  /** Pixels per latent along one side: 8 for all published bases. */
  vaeScaleFactor: number;
  /** Pixels, from the UNet's `sample_size`. */
  defaultWidth: number;
  defaultHeight: number;
  /** `latentChannels`, twice that for an edit UNet, twice that and a mask for an inpainting one. */
  unetInputChannels: number;
  crossAttentionDim: number;
  /** SDXL: how many time ids beside the pooled text, whether the last one is an aesthetic score, and what no negative prompt means. */
  addedConditions: { timeIds: number; requiresAestheticsScore: boolean; forceZerosForEmptyPrompt: boolean } | null;
  /** Latent consistency models take the guidance scale as an input. */
  readsGuidance: boolean;
  vae: { scalingFactor: number };
  /** In the order in which their states are joined. */
  textEncoders: readonly TextEncoderDescription[];
  /** One per text encoder; `tokenizersOf` makes them. */
  tokenizers: readonly TokenizerSource[];
  /** In the form of `scheduler/scheduler_config.json`. */
  schedulerConfig: Readonly<Record<string, unknown>>;
}

const predictionTypes = ["epsilon", "v_prediction", "sample"] as const;

/** Describes a model whose hash is known. Throws ModelError. */
export function describeSource(source: ModelSource, hash: string): ModelDescription {
  const { unet, vae, textEncoders, schedulerConfig, schedulerFile } = source;
  const vaeScaleFactor = 2 ** (vae.channels.length - 1);
  const said = schedulerConfig.prediction_type ?? "epsilon";
  const predictionType = predictionTypes.find(type => type === said);
  if (!predictionType) throw new ModelError(schedulerFile, "prediction_type", "epsilon, v_prediction or sample", JSON.stringify(said));
  return {
    hash,
    family: source.family,
    layout: source.layout,
    tasks: tasksOf(source),
    predictionType,
    latentChannels: vae.latentChannels,
    vaeScaleFactor,
    defaultHeight: unet.sampleSize[0] * vaeScaleFactor,
    defaultWidth: unet.sampleSize[1] * vaeScaleFactor,
    unetInputChannels: unet.inChannels,
    crossAttentionDim: unet.crossAttentionDim,
    addedConditions: addedConditions(source),
    readsGuidance: unet.guidanceWidth !== null,
    vae: { scalingFactor: vae.scalingFactor },
    textEncoders: textEncoders.map(({ component, config }) => ({
      component,
      width: config.width,
      maxLength: config.maxLength,
      layers: config.layers,
      vocabularySize: config.vocabularySize,
      projectionWidth: config.projectionWidth,
    })),
    tokenizers: source.tokenizers,
    schedulerConfig,
  };
}

/** What a UNet can do by its input channels: latents; latents and a picture's; latents, a mask and a masked picture's. */
function tasksOf({ family, unet }: ModelSource): ModelDescription["tasks"] {
  const latents = unet.outChannels;
  switch (unet.inChannels) {
    case latents:
      // A refiner is trained on the last steps only: it has nothing to begin with.
      return family === "sdxl-refiner" ? ["image-to-image", "inpaint"] : ["text-to-image", "image-to-image", "inpaint"];
    case 2 * latents:
      return ["edit"];
    case 2 * latents + 1:
      return ["inpaint"];
    default:
      return [];
  }
}

/** SDXL's base reads six time ids; its refiner five, the last of which is an aesthetic score (diffusers' two img2img forms). */
function addedConditions({ path, unet, textEncoders, forceZerosForEmptyPrompt }: ModelSource): ModelDescription["addedConditions"] {
  if (!unet.added) return null;
  const { width, timeWidth } = unet.added;
  const pooled = textEncoders.at(-1)?.config.projectionWidth ?? 0;
  const timeIds = (width - pooled) / timeWidth;
  if (timeIds !== 5 && timeIds !== 6)
    throw new ModelError(
      path,
      "projection_class_embeddings_input_dim",
      `${pooled} for pooled text and ${timeWidth} for each of 5 or 6 time ids`,
      String(width),
    );
  return { timeIds, requiresAestheticsScore: timeIds === 5, forceZerosForEmptyPrompt };
}
