/** The adapters of one picture, read and ready: what the passes ask for at each step. */
import type { HyperNetwork, IpAdapterLayers } from "../adapters/adapter.ts";
import type { ControlNet } from "../adapters/controlnet/controlnet.ts";
import type { LoraUse, TensorF32 } from "../components.ts";
import type { InversionWord } from "../prompt/chunks.ts";

/** From the call at the share `start` until before the one that would end after the share `end`. */
export interface Span {
  start: number;
  end: number;
}

/** Whether something works in call `index` of `count`; as diffusers' `control_guidance_start` and `_end`. */
export function isActive({ start, end }: Span, index: number, count: number): boolean {
  return index / count >= start && (index + 1) / count <= end;
}

/** A ControlNet over its map, [1, 3, H, W] in 0..1. */
export interface ControlNetUse extends Span {
  net: ControlNet;
  map: TensorF32;
  weight: number;
  /** Deep layers count more, and the negative half goes without. */
  guessMode: boolean;
  globalPool: boolean;
  /** Which control of a union the map is. */
  control: number | null;
}

/** A T2I-Adapter's features of its map, unscaled, [1, C, h, w] each. */
export interface T2iUse extends Span {
  features: readonly TensorF32[];
  weight: number;
}

export interface ImagePromptUse extends Span {
  layers: IpAdapterLayers;
  /** [1, n, width] */
  tokens: TensorF32;
  unconditionalTokens: TensorF32;
  weight: number;
  /** [1, h, w] at the latents' size. */
  mask?: TensorF32;
}

export interface ItemAdapters {
  loras: readonly (LoraUse & Span)[];
  /** In the text encoders, at every step. */
  textLoras: readonly LoraUse[];
  hypernetworks: readonly (Span & { adapter: HyperNetwork; weight: number })[];
  imagePrompts: readonly ImagePromptUse[];
  controlNets: readonly ControlNetUse[];
  t2iAdapters: readonly T2iUse[];
  /** By text encoder: the words of textual inversions, and the rows that their ids stand for. */
  inversions: readonly { words: readonly InversionWord[]; rows?: TensorF32 }[];
}

export const noAdapters: ItemAdapters = {
  loras: [],
  textLoras: [],
  hypernetworks: [],
  imagePrompts: [],
  controlNets: [],
  t2iAdapters: [],
  inversions: [],
};
