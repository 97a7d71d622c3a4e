/** An IP-Adapter's training as a job: its image encoder, what that makes of the dataset's pictures, and what the result needs beside it. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { type ImageEncoder, openImageEncoder } from "../../adapters/ip-adapter/image-encoder.ts";
import type { TensorF32, TrainableModel } from "../../components.ts";
import type { ClipVisionConfig } from "../../models/clip-vision.ts";
import type { Companion, EmbedReference, OpenedStep } from "../context.ts";
import type { MethodArgs } from "./index.ts";
import { openIpAdapterStep, type TrainedIpConfig } from "./ip-adapter.ts";

type Settings = MethodArgs<"ip-adapter">["settings"];

/** Bytes of features that are kept; what is beyond is encoded anew each time. */
const mostFeatureBytes = 2 ** 30;

/** @throws RangeError where no encoder is named; ModelError for one that cannot be read */
export async function openIpAdapterTraining({
  model,
  settings,
  request,
  imageEncoder,
  options,
}: MethodArgs<"ip-adapter">): Promise<OpenedStep> {
  if (imageEncoder === undefined)
    throw new RangeError("settings.image_encoder: expected an adapter that holds a CLIP vision model, got none");
  const inner = join(imageEncoder, "image_encoder");
  const folder = existsSync(inner) ? inner : imageEncoder;
  const encoder = await openImageEncoder(folder, options);
  try {
    const config = newIpConfig(model, settings, encoder.config);
    const step = openIpAdapterStep(model, config, request.seed, options, encoder);
    return { step, embed: referenceFeatures(encoder, settings.variant), companions: encoderFiles(folder) };
  } catch (error) {
    await encoder.release();
    throw error;
  }
}

/** Width of a resampler's heads, and its widest state, in all releases. */
const [headWidth, widestResampler] = [64, 1280];

/** Sizes as Ye et al. released them: for plus, 4 layers as wide as the text states of SD 1, and 1280 at most. */
export function newIpConfig(
  { unet }: Pick<TrainableModel, "unet">,
  { variant, tokens }: Pick<Settings, "variant" | "tokens">,
  encoder: Pick<ClipVisionConfig, "width" | "projectionWidth">,
): TrainedIpConfig {
  const width = unet.config.crossAttentionDim;
  if (variant === "base") return { variant, width, tokens, imageWidth: encoder.projectionWidth };
  const inside = Math.min(width, widestResampler);
  const heads = Math.max(Math.floor(inside / headWidth), 1);
  const resampler = { width: inside, layers: 4, heads, attentionWidth: heads * headWidth, feedForwardWidth: 4 * inside };
  return { variant, width, tokens, resampler: { ...resampler, imageWidth: encoder.width } };
}

/**
 * What the projection reads of a picture, kept by content. No picture is zeros for base, and what the encoder makes of zero pixel values for
 * plus: as both are trained in the authors' code.
 */
export function referenceFeatures(encoder: ImageEncoder, variant: Settings["variant"]): EmbedReference {
  const known = new Map<string, TensorF32>();
  let bytes = 0;
  const featuresOf = async (pixelValues: TensorF32): Promise<TensorF32> => {
    const { imageEmbeds, penultimate } = await encoder.encode(pixelValues);
    return variant === "base" ? imageEmbeds : penultimate;
  };
  const nothing = (): Promise<TensorF32> => {
    const { channels, imageSize, projectionWidth } = encoder.config;
    const zeros = (shape: readonly number[]) => ({ data: new Float32Array(shape.reduce((a, b) => a * b, 1)), shape });
    return variant === "base" ? Promise.resolve(zeros([1, projectionWidth])) : featuresOf(zeros([1, channels, imageSize, imageSize]));
  };
  return async shown => {
    const key = shown ? referenceKey(shown) : "";
    const kept = known.get(key);
    if (kept) return kept;
    const features = shown ? await featuresOf(encoder.preprocess(await shown.source.condition(shown.isFlipped))) : await nothing();
    if (bytes + features.data.byteLength <= mostFeatureBytes) {
      bytes += features.data.byteLength;
      known.set(key, features);
    }
    return features;
  };
}

function referenceKey({ source: { item, size }, isFlipped }: NonNullable<Parameters<EmbedReference>[0]>): string {
  return [item.condition ?? item.sha256, size.width, size.height, isFlipped].join(" ");
}

/** The encoder's weights and configs, as they stand beside published adapters. */
function encoderFiles(folder: string): Companion[] {
  const names = readdirSync(folder).filter(name => /\.(safetensors|json|bin)$/.test(name) && !name.startsWith("."));
  return names.sort().map(name => ({ from: join(folder, name), path: `image_encoder/${name}` }));
}
