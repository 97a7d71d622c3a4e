/** A validated picture request and a loaded model to a picture file. */
import { join } from "node:path";
import { sha256Hex } from "../../shared/canonical.ts";
import { mediaTypes, type PictureRequest } from "../../shared/picture.ts";
import type { ProgressReport } from "../../shared/protocol.ts";
import type { DiffusionModel } from "../components.ts";
import { batchNoise } from "../noise/generator.ts";
import { philoxNoise } from "../noise/philox.ts";
import { samplerClasses, samplerConfig } from "../schedulers/config.ts";
import type { StepReport } from "../schedulers/sampler.ts";
import { type ClipTokenizer, clipTokenizer } from "../tokenizer/clip.ts";
import { readClipVocabulary } from "../tokenizer/load.ts";
import { encodePicture } from "./encode-picture.ts";
import { toBytes, toUnitPictures } from "./pixels.ts";
import { drawPreview, fitPreviewMap, type PreviewMap } from "./preview.ts";
import { latentShape, textToImage } from "./text-to-image.ts";

/** A model with all that pictures need besides it. */
export interface PictureModel {
  model: DiffusionModel;
  tokenizer: ClipTokenizer;
  previewMap: PreviewMap;
}

/** The file of a picture, and what is said of it. */
export interface Picture {
  bytes: Uint8Array<ArrayBuffer>;
  mediaType: string;
  width: number;
  height: number;
  sha256: string;
}

export interface PictureRun {
  /** Called after every step; its report holds a preview at most every `previewMs`. */
  onProgress?: (report: ProgressReport) => void;
  /** Looked at between steps. */
  signal?: AbortSignal;
  previewMs?: number;
}

/** @param folder the model's, for its tokenizer */
export async function preparePictureModel(model: DiffusionModel, folder: string): Promise<PictureModel> {
  const vocabulary = readClipVocabulary(join(folder, "tokenizer"), model.description.tokenizer.maxLength);
  return { model, tokenizer: clipTokenizer(vocabulary), previewMap: await fitPreviewMap(model) };
}

/** @throws the reason of `signal`; RangeError or Error for settings that the model cannot serve */
export async function runPicture(pictureModel: PictureModel, request: PictureRequest, run: PictureRun = {}): Promise<Picture> {
  const { model, tokenizer } = pictureModel;
  const { width, height, sampler } = request;
  const [, channels, latentHeight, latentWidth] = latentShape(model, 1, width, height);
  const generators = [philoxNoise(request.seed)];
  const noise = () => batchNoise(generators, channels * latentHeight * latentWidth);
  const { latents, image } = await textToImage(
    model,
    tokenizer,
    {
      prompts: [request.prompt],
      negativePrompts: [request.negative_prompt ?? ""],
      width,
      height,
      steps: request.steps,
      guidanceScale: request.guidance_scale,
      guidanceRescale: request.guidance_rescale,
      clipSkip: 0,
      scheduler: samplerClasses[sampler],
      schedulerConfig: samplerConfig(sampler, request.sampler_options, model.description.schedulerConfig),
    },
    {
      latents: noise(),
      noise,
      onStep: progressReporter(pictureModel, run, latentWidth, latentHeight),
      ...(run.signal && { signal: run.signal }),
    },
  );
  requireFinite(latents.data, "latents");
  requireFinite(image.data, "pixels");
  const bytes = await encodePicture(toBytes(toUnitPictures(image)[0]!), request);
  return { bytes, mediaType: mediaTypes[request.format], width, height, sha256: await sha256Hex(bytes) };
}

/** What diverged would be written as black, and kept in the cache as a success. */
function requireFinite(values: Float32Array, name: string): void {
  if (!values.every(Number.isFinite))
    throw new RangeError(`${name}: expected finite numbers, got others: these settings diverge on this model`);
}

/** Reports every step; draws previews only so often that they cost little. */
function progressReporter({ previewMap }: PictureModel, { onProgress, previewMs = 500 }: PictureRun, width: number, height: number) {
  let lastPreview = performance.now();
  return async ({ step, steps, original }: StepReport) => {
    if (!onProgress) return;
    if (step === steps || performance.now() - lastPreview < previewMs) return onProgress({ step, steps });
    onProgress({ step, steps, preview: await drawPreview(previewMap, original, width, height) });
    lastPreview = performance.now();
  };
}
