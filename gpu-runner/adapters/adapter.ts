/** What adapter files become once read: plain data that a model can apply, whatever layout they were published in. */
import type { AdapterKind } from "../../shared/adapter.ts";
import type { TensorF32 } from "../components.ts";
import type { StoredTensor } from "../graph/ir.ts";

export type AdapterComponent = "unet" | "textEncoder" | "textEncoder2";

/**
 * Shapes of a base's tensors by component and name, as the graphs take them: what an adapter's keys are resolved against.
 * An SDXL refiner's one encoder is `textEncoder2`, as in the files of its adapters.
 */
export type WeightShapes = Readonly<Partial<Record<AdapterComponent, ReadonlyMap<string, readonly number[]>>>>;

/** What was done with every key of a file. */
export interface AdapterReport {
  /** A row of docs/support.md. */
  layout: string;
  used: readonly string[];
  skipped: readonly { key: string; why: string }[];
}

interface AdapterOf<K extends AdapterKind> {
  kind: K;
  /** Content hash, `sha256:<hex>`: sessions and batches are keyed by it. */
  hash: string;
  report: AdapterReport;
}

/** scale * up x down, added to a linear layer's weight [out, in]. */
export interface LowRank {
  rank: number;
  /** [rank, in] */
  down: Float32Array;
  /** [out, rank] */
  up: Float32Array;
  scale: number;
}

/** The change of one tensor of the base. */
export interface WeightChange {
  component: AdapterComponent;
  /** As the graphs name it: diffusers' key with `.weight` or `.bias`, for text encoders without `text_model.`. */
  name: string;
  /** Of the base's tensor. A 1x1 convolution [out, in, 1, 1] and a linear layer [out, in] stand for one another. */
  shape: readonly number[];
  /** Where the change is that of a linear layer's low-rank pair and nothing else: it can be served as an input, per batch item. */
  lowRank: LowRank | null;
  /** The changed tensor, all elements row by row, at a weight. `dora` matters to DoRA alone. */
  merge(base: Float32Array, weight: number, dora: "peft" | "interpolate" | null): Float32Array;
}

/** LoRA and LyCORIS of every layout. */
export interface LoraAdapter extends AdapterOf<"lora"> {
  changes: readonly WeightChange[];
  /** Textual inversions that some trainers bundle with a LoRA. */
  bundled: readonly TextualInversion[];
}

export interface TextualInversion extends AdapterOf<"textual-inversion"> {
  /** The word in the file, where there is one. */
  token: string | null;
  /** Rows [n, C] by text encoder, in the encoders' order; null where the file has none for one. */
  vectors: readonly (TensorF32 | null)[];
}

/** Activations of A1111's hypernetworks that are served; `swish` is PyTorch's Hardswish there. */
export const hyperNetworkActivations = [
  "linear",
  "relu",
  "leakyrelu",
  "elu",
  "swish",
  "tanh",
  "sigmoid",
  "softsign",
  "mish",
  "gelu",
] as const;
export type HyperNetworkActivation = (typeof hyperNetworkActivations)[number];
export type HyperNetworkLayer =
  | { type: "linear"; weight: TensorF32; bias: TensorF32 }
  | { type: "activation"; name: HyperNetworkActivation }
  | { type: "layer-norm"; weight: TensorF32; bias: TensorF32 };

/** A1111's hypernetwork: x + f(x) * weight on the context before to_k and to_v, by the context's width. Dropout is left out. */
export interface HyperNetwork extends AdapterOf<"hypernetwork"> {
  nets: ReadonlyMap<number, { key: readonly HyperNetworkLayer[]; value: readonly HyperNetworkLayer[] }>;
}

/** The decoupled cross-attention of an IP-Adapter; its image projection stands apart, since it runs once a picture. */
export interface IpAdapterLayers extends AdapterOf<"ip-adapter"> {
  /** K' and V' [width, cross-attention width] by the place of the layer, such as `mid_block.attentions.0.transformer_blocks.0`. */
  layers: ReadonlyMap<string, { key: StoredTensor; value: StoredTensor }>;
}
