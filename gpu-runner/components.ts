/**
 * What a pipeline sees of a diffusion model: a handful of functions over fp32 tensors. It knows neither ONNX nor execution
 * providers; `loadDiffusionModel` in `load.ts` makes one from a diffusers folder.
 */
import type { ExecutionProviderName } from "./graph/emitter.ts";
import type { ModelDescription } from "./weights/describe.ts";

/** A dense row-major fp32 tensor in main memory. */
export interface TensorF32 {
  data: Float32Array;
  shape: readonly number[];
}

/** Outputs of a CLIP text encoder for ids [B, L], named as in diffusers and transformers; C is the encoder's width. */
export interface TextEncoding {
  /** Final layer norm of the last layer's output, [B, L, C]: what SD 1.x conditions on. */
  lastHiddenState: TensorF32;
  /** Raw output of the last but one layer (`hidden_states[-2]`), [B, L, C]. */
  penultimate: TensorF32;
  /** Final layer norm of `penultimate`, [B, L, C]: diffusers' `clip_skip=1`. */
  penultimateNormed: TensorF32;
  /** Final layer norm of `hidden_states[-3]`, [B, L, C]: diffusers' `clip_skip=2`. */
  skip2Normed: TensorF32;
  /** `lastHiddenState` at the end-of-text token, [B, C]. */
  poolerOutput: TensorF32;
}

export interface PredictArgs {
  /** Latents, scaled as the scheduler wants them, [B, C, H, W] with any H and W >= 1. */
  sample: TensorF32;
  /** One per batch item; may be fractional. */
  timesteps: readonly number[];
  /** [B, L, cross-attention width], any L >= 1. */
  encoderHiddenStates: TensorF32;
}

/** A model held by inference sessions. Calls on one model are serialised by the runtime; none may follow `release`. */
export interface DiffusionModel {
  readonly description: ModelDescription;
  /** Token ids, one list per prompt, all of equal length (any length up to the encoder's position count). */
  encodeText(inputIds: readonly (readonly number[])[]): Promise<TextEncoding>;
  /** The UNet's raw output, [B, Cout, H, W]: epsilon or v, as `description.predictionType` says. */
  predict(args: PredictArgs): Promise<TensorF32>;
  /** Pixels in -1..1, [B, 3, H, W], to the posterior of the (unscaled) latents; logvar is clamped to -30..20. */
  encodeImage(image: TensorF32): Promise<{ mean: TensorF32; logvar: TensorF32 }>;
  /** Latents already divided by `description.vae.scalingFactor`, [B, C, h, w], to pixels around -1..1 (not clamped). */
  decodeLatents(latents: TensorF32): Promise<TensorF32>;
  /** Frees the sessions and their memory. */
  release(): Promise<void>;
}

export interface LoadOptions {
  provider: ExecutionProviderName;
  /** Where widened weights are kept, by content hash; created if absent. May be shared between processes. */
  cacheDir: string;
  /** Threads of one operator; absent: the physical cores that ONNX Runtime finds. */
  threads?: number;
}
