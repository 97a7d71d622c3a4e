/** Opens an IP-Adapter of any variant: from reference pictures (or a face's embedding) to the tokens that the UNet attends to. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { TensorF32, UnetBase } from "../../components.ts";
import { GraphError } from "../../graph/ir.ts";
import { buildIpProjection, type IpProjectionConfig, type IpVariant } from "../../models/ip-adapter.ts";
import { createSession, type GraphSession } from "../../session.ts";
import { holdDerived } from "../../weights/derived-files.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { IpAdapterLayers, LoraAdapter } from "../adapter.ts";
import { AdapterWeights } from "../adapter-weights.ts";
import type { OpenAdapterOptions } from "../open-options.ts";
import { readStored } from "../stored-tensor.ts";
import { findImageEncoder, type ImageEncoder, openImageEncoder } from "./image-encoder.ts";
import { faceLora, ipLayers, layerPrefix } from "./layers.ts";
import type { Picture } from "./preprocess.ts";
import { ipProjectionConfig, projectionPrefix } from "./variant.ts";

export interface OpenIpAdapterOptions extends OpenAdapterOptions {
  /** Folder of the image encoder; absent: `image_encoder` in the adapter's folder or beside its file. */
  imageEncoder?: string;
  /** Heads of the resampler; absent: as many as 64 wide heads make, as in all releases. */
  resamplerHeads?: number;
}

/** A reference picture. */
export interface Reference {
  /** Pixel values [1, 3, S, S] (see `preprocess`); null where a face variant sees no picture. */
  pixelValues: TensorF32 | null;
  /** Of a face variant: the face recogniser's embedding, [1, F]. */
  face?: TensorF32;
  /** What its embedding is multiplied by, as ComfyUI's IP-Adapter does for several references; 1: as it is. */
  weight: number;
}

export interface ImageTokens {
  /** [1, n * references, width], reference by reference. */
  tokens: TensorF32;
  /** The same of no picture at all, for the unconditional half. */
  unconditional: TensorF32;
}

/** An IP-Adapter with sessions for its projection and its image encoder; `release` it once. */
export interface IpAdapter {
  readonly kind: "ip-adapter";
  readonly variant: IpVariant;
  readonly layers: IpAdapterLayers;
  /** The low-rank pairs of FaceID adapters, which work at full strength whenever the adapter does; null for others. */
  readonly lora: LoraAdapter | null;
  /** Null where the variant sees no picture (FaceID), or none was found. */
  readonly encoder: ImageEncoder | null;
  /** Pixel values of a picture of any size. */
  preprocess(picture: Picture): TensorF32;
  /** What its projection reads of pixel values [B, 3, S, S]: [B, E], or [B, P, C] of the variants that see patches. */
  embed(pixelValues: TensorF32): Promise<TensorF32>;
  /** What stands for no picture: zeros of base and face variants, a black picture's (zero pixel values) states of the others. */
  embedNothing(): Promise<TensorF32>;
  /** Tokens [B, n, width] of `embed`'s result and a face, for variants that want them. */
  project(args: { embeds?: TensorF32; face?: TensorF32; shortcut?: number | null }): Promise<TensorF32>;
  /** All of the above. `shortcut`: of FaceID-plus' second version, how much its picture counts beside the face; null: first version. */
  tokens(references: readonly Reference[], shortcut?: number | null): Promise<ImageTokens>;
  release(): Promise<void>;
}

/**
 * `path` is the adapter's file, or a folder that holds it. Throws ModelError naming key, expected and got: keys of no known variant, layers
 * or widths other than the base's or the image encoder's.
 */
export async function openIpAdapter(path: string, base: UnetBase, options: OpenIpAdapterOptions): Promise<IpAdapter> {
  const weights = await AdapterWeights.open(path, [adapterFile(path)], options);
  const config = ipProjectionConfig(weights, options.resamplerHeads ?? null);
  if (config.width !== base.config.crossAttentionDim)
    throw new ModelError(
      path,
      "width of the image tokens",
      `${base.config.crossAttentionDim}, the base's cross-attention width`,
      String(config.width),
    );
  const hash = `sha256:${weights.sha256[0]}`;
  const report = { layout: `ip-adapter/${config.variant}`, used: weights.keys(), skipped: [] };
  const layers: IpAdapterLayers = { kind: "ip-adapter", hash, report, layers: ipLayers(weights, base.config) };
  const lora = faceLora(weights, base, { hash, report });
  const latentsKey = `${projectionPrefix}latents`;
  const graph = weights.build(
    name => projectionPrefix + name,
    source => buildIpProjection(config, source),
    key => key.startsWith(layerPrefix) || key === latentsKey,
  );
  const latents = config.variant === "plus" ? readStored(weights.tensor(latentsKey)).data : null;
  const encoder = config.variant === "faceid" ? null : await openEncoder(path, config, options);
  try {
    const session = await createSession(graph, options);
    const letGo = holdDerived(weights.files(), options.cacheDir);
    return new OpenIpAdapter({ config, layers, lora, latents, encoder, session, letGo });
  } catch (error) {
    await encoder?.release();
    throw error;
  }
}

function adapterFile(path: string): string {
  if (!statSync(path, { throwIfNoEntry: false })) throw new ModelError(path, "file", "a file or folder", "none");
  if (!statSync(path).isDirectory()) return path;
  const names = readdirSync(path);
  const [found, second] =
    [".safetensors", ".bin", ".pt"].map(end => names.filter(name => name.endsWith(end))).find(list => list.length > 0) ?? [];
  if (found === undefined || second !== undefined)
    throw new ModelError(path, "weights", "one file .safetensors, .bin or .pt", found === undefined ? "none" : `${found} and ${second}`);
  return join(path, found);
}

async function openEncoder(path: string, config: IpProjectionConfig, options: OpenIpAdapterOptions): Promise<ImageEncoder | null> {
  const folder = options.imageEncoder ?? findImageEncoder(path);
  if (folder === null) return null;
  const { imageEncoder: _, resamplerHeads: __, config: ___, ...shared } = options;
  const encoder = await openImageEncoder(folder, shared);
  const [expected, got] = [imageWidth(config), config.variant === "base" ? encoder.config.projectionWidth : encoder.config.width];
  if (expected === got) return encoder;
  await encoder.release();
  throw new ModelError(folder, config.variant === "base" ? "projection_dim" : "hidden_size", `${expected} as ${path} reads`, String(got));
}

/** Width of what the projection reads of a picture; 0 where it reads none. */
function imageWidth(config: IpProjectionConfig): number {
  if ("resampler" in config) return config.resampler.imageWidth;
  return config.variant === "faceid" ? 0 : config.imageWidth;
}

interface IpAdapterParts {
  config: IpProjectionConfig;
  layers: IpAdapterLayers;
  lora: LoraAdapter | null;
  /** Of the resampler, [n * W]; null of other variants. */
  latents: Float32Array | null;
  encoder: ImageEncoder | null;
  session: GraphSession;
  /** Its layers are read when a UNet's session first needs them: until this is called their files stay. */
  letGo: () => void;
}

class OpenIpAdapter implements IpAdapter {
  readonly kind = "ip-adapter";
  readonly variant: IpVariant;
  readonly layers: IpAdapterLayers;
  readonly lora: LoraAdapter | null;
  readonly encoder: ImageEncoder | null;
  readonly #config: IpProjectionConfig;
  readonly #latents: Float32Array | null;
  readonly #session: GraphSession;
  readonly #letGo: () => void;
  #nothing: Promise<TensorF32> | undefined;

  constructor({ config, layers, lora, latents, encoder, session, letGo }: IpAdapterParts) {
    this.variant = config.variant;
    this.layers = layers;
    this.lora = lora;
    this.encoder = encoder;
    this.#config = config;
    this.#latents = latents;
    this.#session = session;
    this.#letGo = letGo;
  }

  preprocess(picture: Picture): TensorF32 {
    return this.#requireEncoder().preprocess(picture);
  }

  async embed(pixelValues: TensorF32): Promise<TensorF32> {
    const { imageEmbeds, penultimate } = await this.#requireEncoder().encode(pixelValues);
    return this.variant === "base" ? imageEmbeds : penultimate;
  }

  embedNothing(): Promise<TensorF32> {
    const width = imageWidth(this.#config);
    this.#nothing ??= this.variant === "base" || this.variant === "faceid" ? Promise.resolve(zeros([1, width])) : this.#embedZeroPicture();
    return this.#nothing;
  }

  async project({ embeds, face, shortcut }: { embeds?: TensorF32; face?: TensorF32; shortcut?: number | null }): Promise<TensorF32> {
    const batch = (embeds ?? face)?.shape[0] ?? 0;
    const latents = this.#latents && repeated(this.#latents, batch, this.#config);
    const out = await this.#session.run({ ...(embeds && { embeds }), ...(face && { face }), ...(latents && { latents }) });
    const { tokens, identity } = out;
    if (shortcut === null || shortcut === undefined || !identity) return tokens!;
    // The second version's file looks like the first's; there the face's tokens have the width of the result.
    if (String(identity.shape) !== String(tokens!.shape))
      throw new GraphError(
        "shortcut",
        "feed",
        `tokens of width ${identity.shape[2]}`,
        `${tokens!.shape[2]}: this adapter is no second version`,
      );
    return { data: tokens!.data.map((value, i) => identity.data[i]! + shortcut * value), shape: tokens!.shape };
  }

  async tokens(references: readonly Reference[], shortcut: number | null = null): Promise<ImageTokens> {
    const rows: TensorF32[] = [];
    const empty: TensorF32[] = [];
    const nothing = this.variant === "faceid" ? null : await this.embedNothing();
    for (const { pixelValues, face, weight } of references) {
      const ownFace = this.#requireFace(face);
      const embeds = nothing && (await this.embed(this.#requirePicture(pixelValues)));
      rows.push(
        await this.project({
          ...(embeds && { embeds: scaled(embeds, weight) }),
          ...(ownFace && { face: scaled(ownFace, weight) }),
          shortcut,
        }),
      );
      const none = { ...(nothing && { embeds: nothing }), ...(ownFace && { face: zeros(ownFace.shape) }), shortcut };
      empty.push(await this.project(none));
    }
    return { tokens: joinTokens(rows), unconditional: joinTokens(empty) };
  }

  async release(): Promise<void> {
    this.#letGo();
    await Promise.all([this.#session.release(), this.encoder?.release()]);
  }

  async #embedZeroPicture(): Promise<TensorF32> {
    const { channels, imageSize } = this.#requireEncoder().config;
    return this.embed(zeros([1, channels, imageSize, imageSize]));
  }

  #requireEncoder(): ImageEncoder {
    if (this.encoder) return this.encoder;
    if (this.variant === "faceid") throw new GraphError("reference", this.variant, "a face's embedding and no picture", "a picture");
    throw new GraphError("image_encoder", this.variant, "the folder of a CLIP vision model beside the adapter", "none");
  }

  #requirePicture(pixelValues: TensorF32 | null): TensorF32 {
    if (pixelValues) return pixelValues;
    throw new GraphError("reference", this.variant, "a picture", "none");
  }

  #requireFace(face: TensorF32 | undefined): TensorF32 | null {
    if (!("faceWidth" in this.#config)) {
      if (face) throw new GraphError("embedding", this.variant, "pictures alone, since it reads no face's embedding", `[${face.shape}]`);
      return null;
    }
    const expected = [1, this.#config.faceWidth];
    if (!face || String(face.shape) !== String(expected))
      throw new GraphError("embedding", this.variant, `a face's embedding [${expected}]`, face ? `[${face.shape}]` : "none");
    return face;
  }
}

function zeros(shape: readonly number[]): TensorF32 {
  return { data: new Float32Array(shape.reduce((a, b) => a * b, 1)), shape };
}

function scaled({ data, shape }: TensorF32, factor: number): TensorF32 {
  return factor === 1 ? { data, shape } : { data: data.map(value => value * factor), shape };
}

function repeated(latents: Float32Array, batch: number, config: IpProjectionConfig): TensorF32 | null {
  if (config.variant !== "plus") return null;
  const data = new Float32Array(latents.length * batch);
  for (let b = 0; b < batch; b++) data.set(latents, b * latents.length);
  return { data, shape: [batch, config.tokens, config.resampler.width] };
}

/** [1, n, W] each, one after the other. */
function joinTokens(rows: readonly TensorF32[]): TensorF32 {
  const [first] = rows;
  if (!first) throw new GraphError("references", "ip-adapter", "at least one", "none");
  const data = new Float32Array(rows.reduce((sum, row) => sum + row.data.length, 0));
  let at = 0;
  for (const row of rows) {
    data.set(row.data, at);
    at += row.data.length;
  }
  const width = first.shape[2]!;
  return { data, shape: [1, data.length / width, width] };
}
