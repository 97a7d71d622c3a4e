/** What is known of a model folder before any session is made. */
import { join } from "node:path";
import { z } from "zod";
import type { ModelFamily } from "../../shared/model.ts";
import { ModelError } from "./model-error.ts";
import { type ComponentName, hashModel, type ModelFolder, openModelFolder } from "./model-folder.ts";
import { dtypeBytes, withSafetensors } from "./safetensors.ts";

/** Plain data, so it may cross threads and sockets. */
export interface ModelDescription {
  /** "sha256:<hex>" over the files that determine the picture. */
  hash: string;
  family: ModelFamily;
  predictionType: "epsilon" | "v_prediction" | "sample";
  latentChannels: number;
  /** Pixels per latent along one side: 8 for SD 1.x. */
  vaeScaleFactor: number;
  /** Pixels, from the UNet's `sample_size`. */
  defaultWidth: number;
  defaultHeight: number;
  /** `latentChannels`, or more for an inpainting UNet. */
  unetInputChannels: number;
  crossAttentionDim: number;
  vae: { scalingFactor: number };
  textEncoder: { maxLength: number; hiddenSize: number };
  tokenizer: { maxLength: number };
  /** `scheduler/scheduler_config.json` as it stands. */
  schedulerConfig: Readonly<Record<string, unknown>>;
  parameters: Readonly<Record<ComponentName, number>>;
}

const predictionTypeSchema = z.enum(["epsilon", "v_prediction", "sample"]).default("epsilon");

/** Opens, hashes and describes a folder. Throws ModelError. */
export async function describeModel(path: string): Promise<ModelDescription> {
  const folder = openModelFolder(path);
  return describeFolder(folder, (await hashModel(folder)).hash);
}

/** Describes a folder whose hash is known. Throws ModelError. */
export function describeFolder(folder: ModelFolder, hash: string): ModelDescription {
  const { unet, vae, textEncoder, schedulerConfig, weightFiles } = folder;
  const vaeScaleFactor = 2 ** (vae.channels.length - 1);
  const predictionType = predictionTypeSchema.safeParse(schedulerConfig.prediction_type);
  if (!predictionType.success) {
    const file = join(folder.path, "scheduler/scheduler_config.json");
    throw new ModelError(file, "prediction_type", "epsilon, v_prediction or sample", JSON.stringify(schedulerConfig.prediction_type));
  }
  return {
    hash,
    family: "sd1",
    predictionType: predictionType.data,
    latentChannels: vae.latentChannels,
    vaeScaleFactor,
    defaultHeight: unet.sampleSize[0] * vaeScaleFactor,
    defaultWidth: unet.sampleSize[1] * vaeScaleFactor,
    unetInputChannels: unet.inChannels,
    crossAttentionDim: unet.crossAttentionDim,
    vae: { scalingFactor: vae.scalingFactor },
    textEncoder: { maxLength: textEncoder.maxLength, hiddenSize: textEncoder.width },
    tokenizer: { maxLength: folder.tokenizerMaxLength },
    schedulerConfig,
    parameters: {
      unet: countParameters(weightFiles.unet),
      vae: countParameters(weightFiles.vae),
      textEncoder: countParameters(weightFiles.textEncoder),
    },
  };
}

/** Elements of all floating-point tensors of a file. */
function countParameters(file: string): number {
  return withSafetensors(file, source =>
    [...source.entries.values()].reduce(
      (sum, entry) => sum + (source.isFloat(entry.name) ? entry.byteLength / dtypeBytes[entry.dtype] : 0),
      0,
    ),
  );
}
