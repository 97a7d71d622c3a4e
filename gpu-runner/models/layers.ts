/** The layers that all models share: each takes its weights by name and shape from where it stands, and applies an op. */
import { multiply, symbol } from "../graph/dims.ts";
import type { Graph, StoredTensor, Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { WeightSource } from "../weights/weights.ts";

/** Which linear layers take a low-rank pair as inputs: a LoRA's, or several side by side. */
export interface LowRankLayers {
  /** Names of their weights. */
  names: ReadonlySet<string>;
  /** Whether each item of a batch has pairs of its own. */
  perItem: boolean;
}

/** The inputs that hold a layer's low-rank pair: [R, in] and [out, R], or [B, R, in] and [B, out, R]. */
export function lowRankInputs(weightName: string): { down: string; up: string } {
  return { down: `${weightName}/down`, up: `${weightName}/up` };
}

/** A place in a model: a graph under construction, and a prefix of weight names. */
export class Place {
  readonly graph: Graph;
  readonly weights: WeightSource;
  readonly prefix: string;
  readonly lowRank: LowRankLayers | null;

  constructor(graph: Graph, weights: WeightSource, lowRank: LowRankLayers | null = null, prefix = "") {
    this.graph = graph;
    this.weights = weights;
    this.lowRank = lowRank;
    this.prefix = prefix;
  }

  at(name: string): Place {
    return new Place(this.graph, this.weights, this.lowRank, `${this.prefix}${name}.`);
  }

  /** A weight of this place; `view` is another shape for the same elements. */
  weight(name: string, shape: readonly number[], view: readonly number[] = shape): Value {
    return this.graph.weight(this.weights.take(`${this.prefix}${name}`, shape), view);
  }
}

export type Activation = (x: Value) => Value;

/** Channels of [B, C, H, W], which are always a number. */
export function channelsOf(x: Value): number {
  return x.shape[1] as number;
}

/** Width of [B, L, C] or [B, C], which is always a number. */
export function widthOf(x: Value): number {
  return x.shape.at(-1) as number;
}

/** 3x3 convolution that keeps the size. */
export function conv3x3(place: Place, x: Value, out: number): Value {
  return conv(place, x, out, 3, 1, { top: 1, left: 1, bottom: 1, right: 1 });
}

export function conv1x1(place: Place, x: Value, out: number): Value {
  return conv(place, x, out, 1, 1, { top: 0, left: 0, bottom: 0, right: 0 });
}

export function conv(place: Place, x: Value, out: number, kernel: number, stride: number, pads: ops.Pads): Value {
  const weight = place.weight("weight", [out, channelsOf(x), kernel, kernel]);
  return ops.conv2d(x, weight, place.weight("bias", [out]), { stride, pads });
}

export function linear(place: Place, x: Value, out: number): Value {
  return matrix(place, x, place.weight("weight", [out, widthOf(x)]), place.weight("bias", [out]));
}

export function linearWithoutBias(place: Place, x: Value, out: number): Value {
  return matrix(place, x, place.weight("weight", [out, widthOf(x)]), null);
}

/** A linear layer that may be stored as the 1x1 convolution that does the same to every pixel. */
export function projection(place: Place, x: Value, out: number, stored: "matrix" | "convolution"): Value {
  const shape = [out, widthOf(x)];
  return matrix(place, x, place.weight("weight", stored === "matrix" ? shape : [...shape, 1, 1], shape), place.weight("bias", [out]));
}

function matrix({ graph, lowRank, prefix }: Place, x: Value, weight: Value, bias: Value | null): Value {
  const name = `${prefix}weight`;
  if (!lowRank?.names.has(name)) return ops.linear(x, weight, bias);
  const [out, width] = weight.shape as [number, number];
  const inputs = lowRankInputs(name);
  // Ranks may differ from layer to layer: each has a symbol of its own.
  const rank = symbol(`R.${name}`);
  const items = lowRank.perItem ? [x.shape[0]!] : [];
  const down = graph.input(inputs.down, [...items, rank, width]);
  const up = graph.input(inputs.up, [...items, out, rank]);
  return ops.lowRankLinear(x, weight, bias, { down, up });
}

export function groupNorm(place: Place, x: Value, groups: number, epsilon: number): Value {
  const channels = channelsOf(x);
  return ops.groupNorm(x, place.weight("weight", [channels]), place.weight("bias", [channels]), { groups, epsilon });
}

export function layerNorm(place: Place, x: Value, epsilon: number): Value {
  const width = widthOf(x);
  return ops.layerNorm(x, place.weight("weight", [width]), place.weight("bias", [width]), { epsilon });
}

/** [B, C, H, W] to [B, H*W, C]: pixels as tokens. */
export function toTokens(x: Value): Value {
  const [batch, channels, height, width] = x.shape;
  return ops.transpose(ops.reshape(x, [batch!, channels!, multiply(height!, width!)]), [0, 2, 1]);
}

/** The inverse of `toTokens`, into the shape of `like`. */
export function fromTokens(tokens: Value, like: Value): Value {
  return ops.reshape(ops.transpose(tokens, [0, 2, 1]), like.shape);
}

interface ResnetOptions {
  out: number;
  groups: number;
  epsilon: number;
  activation: Activation;
  /** Time embedding [B, E], already activated; null in an autoencoder. */
  time: Value | null;
}

/** Norm, activation, convolution, twice, with the time added between, plus the input (diffusers' ResnetBlock2D). */
export function resnetBlock(place: Place, x: Value, options: ResnetOptions): Value {
  const { out, groups, epsilon, activation, time } = options;
  let h = conv3x3(place.at("conv1"), activation(groupNorm(place.at("norm1"), x, groups, epsilon)), out);
  if (time) {
    const shift = linear(place.at("time_emb_proj"), time, out);
    h = ops.add(h, ops.reshape(shift, [shift.shape[0]!, out, 1, 1]));
  }
  h = conv3x3(place.at("conv2"), activation(groupNorm(place.at("norm2"), h, groups, epsilon)), out);
  return ops.add(channelsOf(x) === out ? x : conv1x1(place.at("conv_shortcut"), x, out), h);
}

/** One of several equal parts of a tensor along its first axis: the same bytes, fewer rows. */
export function partOf(stored: StoredTensor, part: number, parts: number): StoredTensor {
  const byteLength = stored.byteLength / parts;
  const [rows, ...rest] = stored.shape;
  return {
    ...stored,
    key: `${stored.key}[${part}/${parts}]`,
    offset: stored.offset + part * byteLength,
    byteLength,
    shape: [rows! / parts, ...rest],
  };
}
