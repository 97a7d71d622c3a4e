/**
 * What a pipeline sees of a diffusion model: a handful of functions over fp32 tensors. It knows neither ONNX nor execution
 * providers; `loadDiffusionModel` in `load.ts` makes one from published weights.
 */
import type { HyperNetwork, IpAdapterLayers, LoraAdapter, WeightShapes } from "./adapters/adapter.ts";
import type { ExecutionProviderName } from "./graph/emitter.ts";
import type { TextEmbeddings } from "./models/text-embeddings.ts";
import type { TextEncoderConfig, UnetConfig } from "./weights/configs.ts";
import type { ModelDescription } from "./weights/describe.ts";
import type { ModelSource } from "./weights/model-source.ts";
import type { WeightSource } from "./weights/weights.ts";

/** A dense row-major fp32 tensor in main memory. */
export interface TensorF32 {
  data: Float32Array;
  shape: readonly number[];
}

/** A LoRA and how strongly it works. */
export interface LoraUse {
  adapter: LoraAdapter;
  weight: number;
  /** For a DoRA at a weight other than 1; null: as the file's origin implies. */
  dora: "peft" | "interpolate" | null;
}

export interface EncodeTextArgs {
  /** 0: `text_encoder`, 1: SDXL's `text_encoder_2`. An SDXL refiner has only the second kind, which is its encoder 0. */
  encoder: number;
  /** Token ids, one list per prompt, all of equal length up to the encoder's position count. */
  inputIds: readonly (readonly number[])[];
  /** Rows [n, C] for token ids from the vocabulary's size on, as textual inversions bring them. */
  extraEmbeddings?: TensorF32;
  /** One list per prompt; absent: none. */
  loras?: readonly (readonly LoraUse[])[];
}

/** Outputs of a CLIP text encoder for ids [B, L]; C is the encoder's width. */
export interface TextEncoding {
  /** Raw `hidden_states[-1 - skip]`, [B, L, C]. SDXL conditions on skip 1. Throws RangeError for a skip beyond the layers. */
  hidden(skip: number): TensorF32;
  /** The same after the final layer norm, [B, L, C]: SD 1 and 2 condition on skip 0, diffusers' `clip_skip=n` on skip n. */
  normed(skip: number): TensorF32;
  /** `normed(0)` at the end-of-text token, [B, C]; through the text projection where the encoder has one (`text_embeds`). */
  pooled: TensorF32;
}

/** One IP-Adapter's share in a prediction. */
export interface IpAdapterUse {
  layers: IpAdapterLayers;
  /** Image tokens [B, n, cross-attention width], one row of tokens per batch item. */
  tokens: TensorF32;
  /** One per batch item. */
  weights: readonly number[];
  /** [1 or B, h, w] of any size (resized to each level), 1 where it works; absent: everywhere. */
  mask?: TensorF32;
}

export interface PredictArgs {
  /** Latents, scaled as the scheduler wants them, [B, C, H, W] with any H and W >= 1. */
  sample: TensorF32;
  /** One per batch item; may be fractional. */
  timesteps: readonly number[];
  /** [B, L, cross-attention width], any L >= 1. */
  encoderHiddenStates: TensorF32;
  /** SDXL: pooled text [B, P] and micro-conditioning [B, 6], or [B, 5] for a refiner. */
  added?: { textEmbeds: TensorF32; timeIds: TensorF32 };
  /** One per batch item: the guidance scale, where `description.readsGuidance` (latent consistency models). */
  guidance?: readonly number[];
  /** One list per batch item; items with unequal sets are computed together where the kinds allow it, else apart. */
  loras?: readonly (readonly LoraUse[])[];
  /** One list per batch item; items with unequal lists are computed apart. */
  hypernetworks?: readonly (readonly { adapter: HyperNetwork; weight: number }[])[];
  ipAdapters?: readonly IpAdapterUse[];
  /** ControlNet: added to the skips in their order and to the middle block's result; already scaled and summed over nets. */
  control?: { down: readonly TensorF32[]; mid: TensorF32 };
  /** T2I-Adapter: added to each level's last hidden state; already scaled and summed. */
  t2iFeatures?: readonly TensorF32[];
}

/** The UNet as those adapters need it that follow its geometry or add to its weights: ControlNets, IP-Adapters. */
export interface UnetBase {
  /** The model's content hash. */
  hash: string;
  config: UnetConfig;
  /** Its tensors as they lie on disk, by the graph's names. */
  weights: WeightSource;
  shapes: ReadonlyMap<string, readonly number[]>;
}

/** A text encoder as a training needs it: over weights of its own choice, from embeddings that it may change. */
export interface TextEncoderBase {
  component: "textEncoder" | "textEncoder2";
  config: TextEncoderConfig;
  weights: WeightSource;
  shapes: ReadonlyMap<string, readonly number[]>;
  embeddings: TextEmbeddings;
}

/** A model held by inference sessions. Calls on one model are serialised by the runtime; none may follow `release`. */
export interface DiffusionModel {
  readonly description: ModelDescription;
  /** Every tensor of the UNet and the text encoders: where adapters can take hold. */
  readonly weightShapes: WeightShapes;
  readonly unet: UnetBase;
  encodeText(args: EncodeTextArgs): Promise<TextEncoding>;
  /** The UNet's raw output, [B, Cout, H, W]: epsilon or v, as `description.predictionType` says. */
  predict(args: PredictArgs): Promise<TensorF32>;
  /** Pixels in -1..1, [B, 3, H, W], to the posterior of the (unscaled) latents; logvar is clamped to -30..20. */
  encodeImage(image: TensorF32): Promise<{ mean: TensorF32; logvar: TensorF32 }>;
  /** Latents already divided by `description.vae.scalingFactor`, [B, C, h, w], to pixels around -1..1 (not clamped). */
  decodeLatents(latents: TensorF32): Promise<TensorF32>;
  /**
   * Latents on the sampler's scale to pixels around -1..1, quickly and roughly, by a TAESD-type decoder; null where the model came
   * without one.
   */
  readonly decodePreview: ((latents: TensorF32) => Promise<TensorF32>) | null;
  /** Frees the sessions and their memory. */
  release(): Promise<void>;
}

export interface LoadOptions {
  provider: ExecutionProviderName;
  /** Where widened weights and optimised graphs are kept, by content hash; created if absent. May be shared between processes. */
  cacheDir: string;
  /** Threads of one operator; absent: the physical cores that ONNX Runtime finds. */
  threads?: number;
  /** A sign of life: called after each run of a session, and again and again while something long is written. */
  alive?: () => void;
}

/** A model whose parts a training can build anew. */
export interface TrainableModel extends DiffusionModel {
  /** Its files. */
  readonly source: ModelSource;
  /** In the order of `description.textEncoders`. */
  readonly textEncoders: readonly TextEncoderBase[];
}
