/** The CLIP vision encoder of an IP-Adapter: opened from its folder, shared by all adapters that use the same weights. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import type { TensorF32 } from "../../components.ts";
import { GraphError } from "../../graph/ir.ts";
import { buildClipVision, buildClipVisionHead, type ClipVisionConfig } from "../../models/clip-vision.ts";
import { createSession, SessionCache, type SessionLease } from "../../session.ts";
import { activationNames, checkConfig } from "../../weights/configs.ts";
import { ModelError } from "../../weights/model-error.ts";
import { findAdapterFiles } from "../adapter-files.ts";
import { AdapterWeights } from "../adapter-weights.ts";
import type { OpenAdapterOptions } from "../open-options.ts";
import { readStored } from "../stored-tensor.ts";
import { clipPreprocessing, type Picture, type Preprocessing, toPixelValues } from "./preprocess.ts";

/** What a picture is as CLIP sees it. */
export interface ImageEncoding {
  /** The projected embedding, [B, E]. */
  imageEmbeds: TensorF32;
  /** The state before the last layer, [B, P + 1, C]. */
  penultimate: TensorF32;
}

/** `release` it once. */
export interface ImageEncoder {
  readonly config: ClipVisionConfig;
  /** Pixel values [1, 3, S, S] as the encoder reads them, of a picture of any size. */
  preprocess(picture: Picture): TensorF32;
  /** Of pixel values [B, 3, S, S]. */
  encode(pixelValues: TensorF32): Promise<ImageEncoding>;
  release(): Promise<void>;
}

const count = z.int().positive();
const visionSchema = z.object({
  hidden_size: count.default(768),
  intermediate_size: count.default(3072),
  projection_dim: count.default(512),
  num_hidden_layers: z.int().min(2).default(12),
  num_attention_heads: count.default(12),
  num_channels: count.default(3),
  image_size: count.default(224),
  patch_size: count.default(32),
  hidden_act: z.enum(activationNames).default("quick_gelu"),
  layer_norm_eps: z.number().positive().default(1e-5),
});

/** Where the encoder lies: `image_encoder` within the adapter's folder, or beside its file. */
export function findImageEncoder(path: string): string | null {
  return [join(path, "image_encoder"), join(dirname(path), "image_encoder")].find(folder => existsSync(folder)) ?? null;
}

/** Encoders of this process by the hash of their weights: they are larger than the adapters that share them. */
const sessions = new SessionCache();

/** A folder of transformers' CLIPVisionModelWithProjection. Throws ModelError naming key, expected and got. */
export async function openImageEncoder(folder: string, options: OpenAdapterOptions): Promise<ImageEncoder> {
  const files = findAdapterFiles(folder, ["clip_vision_model"]);
  if (!files.config) throw new ModelError(folder, "config.json", "the config of a CLIP vision model", "none");
  const config = visionConfig(files.config.file, files.config.json);
  const preprocessing = clipPreprocessing(join(folder, "preprocessor_config.json"), config.imageSize);
  const weights = await AdapterWeights.open(folder, files.weights, options);
  // Released files have the prefix; it is dropped in some conversions.
  const hasPrefix = weights.keys().some(key => key.startsWith("vision_model."));
  const keyFor = (name: string): string => (hasPrefix ? name : name.replace(/^vision_model\./, ""));
  const classKey = keyFor("vision_model.embeddings.class_embedding");
  const headPrefixes = [keyFor("vision_model.post_layernorm."), "visual_projection."];
  const isHead = (key: string): boolean => headPrefixes.some(prefix => key.startsWith(prefix));
  const body = weights.build(
    keyFor,
    source => buildClipVision(config, source),
    key => key === classKey || isHead(key) || isBuffer(key),
  );
  const head = weights.build(
    keyFor,
    source => buildClipVisionHead(config, source),
    key => !isHead(key),
  );
  const classEmbedding = readStored(weights.tensor(classKey));
  if (classEmbedding.data.length !== config.width)
    throw new ModelError(folder, classKey, `shape [${config.width}]`, `[${classEmbedding.shape}]`);
  const key = JSON.stringify([weights.sha256, config, options.provider, options.threads ?? "all"]);
  const leases = [body, head].map(graph => sessions.acquire(`${graph.name}/${key}`, () => createSession(graph, options)));
  const made = await Promise.allSettled(leases.map(({ session }) => session));
  const failed = made.find(result => result.status === "rejected");
  if (failed) {
    await Promise.all(leases.map(lease => lease.release()));
    throw failed.reason;
  }
  return new OpenImageEncoder(config, preprocessing, classEmbedding.data, leases[0]!, leases[1]!);
}

/** Files of the whole of CLIP hold buffers that count from 0, and the text's side. */
function isBuffer(key: string): boolean {
  return key.endsWith("position_ids") || key.startsWith("text_model.") || key === "text_projection.weight" || key === "logit_scale";
}

function visionConfig(file: string, json: unknown): ClipVisionConfig {
  const config = checkConfig(file, json, visionSchema);
  if (config.hidden_size % config.num_attention_heads !== 0)
    throw new ModelError(file, "num_attention_heads", `a divisor of ${config.hidden_size}`, String(config.num_attention_heads));
  return {
    width: config.hidden_size,
    intermediateWidth: config.intermediate_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    imageSize: config.image_size,
    patchSize: config.patch_size,
    channels: config.num_channels,
    projectionWidth: config.projection_dim,
    activation: config.hidden_act,
    epsilon: config.layer_norm_eps,
  };
}

class OpenImageEncoder implements ImageEncoder {
  readonly config: ClipVisionConfig;
  readonly #preprocessing: Preprocessing;
  readonly #classEmbedding: Float32Array;
  readonly #body: SessionLease;
  readonly #head: SessionLease;

  constructor(
    config: ClipVisionConfig,
    preprocessing: Preprocessing,
    classEmbedding: Float32Array,
    body: SessionLease,
    head: SessionLease,
  ) {
    this.config = config;
    this.#preprocessing = preprocessing;
    this.#classEmbedding = classEmbedding;
    this.#body = body;
    this.#head = head;
  }

  preprocess(picture: Picture): TensorF32 {
    return toPixelValues(picture, this.#preprocessing);
  }

  async encode(pixelValues: TensorF32): Promise<ImageEncoding> {
    const { width, channels, imageSize } = this.config;
    const batch = pixelValues.shape[0]!;
    const expected = [batch, channels, imageSize, imageSize];
    if (String(pixelValues.shape) !== String(expected))
      throw new GraphError("pixel_values", "feed", `[${expected}]`, `[${pixelValues.shape}]`);
    const classToken = new Float32Array(batch * width);
    for (let b = 0; b < batch; b++) classToken.set(this.#classEmbedding, b * width);
    const body = await this.#body.session;
    const { final, penultimate } = await body.run({
      patches: patchesOf(pixelValues, this.config),
      class_token: { data: classToken, shape: [batch, 1, width] },
    });
    const tokens = final!.shape[1]!;
    const token = new Float32Array(batch * width);
    for (let b = 0; b < batch; b++) token.set(final!.data.subarray(b * tokens * width, (b * tokens + 1) * width), b * width);
    const head = await this.#head.session;
    const { image_embeds: imageEmbeds } = await head.run({ token: { data: token, shape: [batch, width] } });
    return { imageEmbeds: imageEmbeds!, penultimate: penultimate! };
  }

  async release(): Promise<void> {
    await Promise.all([this.#body.release(), this.#head.release()]);
  }
}

/** Pixels [B, C, S, S] as patches [B, (S / p)^2, C * p * p], those beyond the last whole patch left out. */
function patchesOf({ data, shape }: TensorF32, { imageSize, patchSize: p }: ClipVisionConfig): TensorF32 {
  const [batch, channels] = shape as [number, number];
  const perSide = Math.floor(imageSize / p);
  const out = new Float32Array(batch * perSide * perSide * channels * p * p);
  let to = 0;
  for (let b = 0; b < batch; b++)
    for (let patch = 0; patch < perSide * perSide; patch++)
      for (let channel = 0; channel < channels; channel++)
        for (let y = 0; y < p; y++) {
          const row = Math.floor(patch / perSide) * p + y;
          const from = ((b * channels + channel) * imageSize + row) * imageSize + (patch % perSide) * p;
          out.set(data.subarray(from, from + p), to);
          to += p;
        }
  return { data: out, shape: [batch, perSide * perSide, channels * p * p] };
}
