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

/** A pair that is trained beside a weight; DoRA (Liu et al. 2024) also has a magnitude per output. */
export interface TrainedPair {
  rank: number;
  /** Of up * down. */
  scale: number;
  /** Null: a plain LoRA. `detached`: the norm counts as a constant, as the paper proposes. */
  dora: "detached" | "attached" | null;
}

/** What of a model is trained and therefore fed: weights by their names, and pairs by the names of the weights that they change. */
export interface TrainedLayers {
  weights: ReadonlySet<string>;
  pairs: ReadonlyMap<string, TrainedPair>;
}

/**
 * The inputs of a trained pair: down [R, in] and up [out, R], of a convolution [R, in, k, k] and [out, R, 1, 1]; a DoRA's magnitude
 * [out]; `held`: down and up once more, for a norm without gradient.
 */
export function trainedInputs(weightName: string): { down: string; up: string; magnitude: string; held: { down: string; up: string } } {
  const { down, up } = lowRankInputs(weightName);
  return { down, up, magnitude: `${weightName}/magnitude`, held: { down: `${down}.held`, up: `${up}.held` } };
}

/** A place in a model: a graph under construction, and a prefix of weight names. */
export class Place {
  readonly graph: Graph;
  readonly weights: WeightSource;
  readonly prefix: string;
  readonly lowRank: LowRankLayers | null;
  readonly trained: TrainedLayers | null;

  constructor(
    graph: Graph,
    weights: WeightSource,
    lowRank: LowRankLayers | null = null,
    trained: TrainedLayers | null = null,
    prefix = "",
  ) {
    this.graph = graph;
    this.weights = weights;
    this.lowRank = lowRank;
    this.trained = trained;
    this.prefix = prefix;
  }

  at(name: string): Place {
    return new Place(this.graph, this.weights, this.lowRank, this.trained, `${this.prefix}${name}.`);
  }

  /** A weight of this place, or where it is trained the input of its name; `view` is another shape for the same elements. */
  weight(name: string, shape: readonly number[], view: readonly number[] = shape): Value {
    const full = `${this.prefix}${name}`;
    if (this.trained?.weights.has(full)) return this.graph.input(full, view);
    return this.graph.weight(this.weights.take(full, shape), view);
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
  const bias = place.weight("bias", [out]);
  const pair = trainedPair(place);
  if (!pair) return ops.conv2d(x, weight, bias, { stride, pads });
  const inputs = pairInputs(place, pair, [pair.rank, channelsOf(x), kernel, kernel], [out, pair.rank, 1, 1]);
  const low = ops.conv2d(ops.conv2d(x, inputs.down, null, { stride, pads }), inputs.up, null, { stride: 1, pads: noPads });
  const y = ops.add(ops.conv2d(x, weight, null, { stride, pads }), ops.scale(low, pair.scale));
  return ops.add(inputs.magnify ? ops.multiply(y, ops.reshape(inputs.magnify(weight), [out, 1, 1])) : y, ops.reshape(bias, [out, 1, 1]));
}

const noPads = { top: 0, left: 0, bottom: 0, right: 0 } as const;

function trainedPair({ trained, prefix }: Place): TrainedPair | undefined {
  return trained?.pairs.get(`${prefix}weight`);
}

/** `magnify`: the factor of each output, magnitude / ||weight + scale up down||; null for a plain LoRA. */
function pairInputs({ graph, prefix }: Place, pair: TrainedPair, downShape: readonly number[], upShape: readonly number[]) {
  const names = trainedInputs(`${prefix}weight`);
  const down = graph.input(names.down, downShape);
  const up = graph.input(names.up, upShape);
  if (pair.dora === null) return { down, up, magnify: null };
  const out = upShape[0]!;
  const magnitude = graph.input(names.magnitude, [out]);
  // Gradients are asked for in `down` and `up` alone, so that a norm over their copies is a constant.
  const held = pair.dora === "detached";
  const [normDown, normUp] = held ? [graph.input(names.held.down, downShape), graph.input(names.held.up, upShape)] : [down, up];
  const magnify = (weight: Value): Value => {
    const width = elementsOf(downShape) / pair.rank;
    const product = ops.matmul(ops.reshape(normUp, [out, pair.rank]), ops.reshape(normDown, [pair.rank, width]), { scale: pair.scale });
    const merged = ops.add(ops.reshape(weight, [out, width]), product);
    const norm = ops.sqrt(ops.reduceSum(ops.multiply(merged, merged), [1]));
    return ops.multiply(magnitude, ops.reciprocal(ops.reshape(norm, [out])));
  };
  return { down, up, magnify };
}

function elementsOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
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

function matrix(place: Place, x: Value, weight: Value, bias: Value | null): Value {
  const { graph, lowRank, prefix } = place;
  const pair = trainedPair(place);
  if (pair) return trainedMatrix(place, x, weight, bias, pair);
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

function trainedMatrix(place: Place, x: Value, weight: Value, bias: Value | null, pair: TrainedPair): Value {
  const [out, width] = weight.shape as [number, number];
  const { down, up, magnify } = pairInputs(place, pair, [pair.rank, width], [out, pair.rank]);
  const low = ops.scale(ops.linear(ops.linear(x, down, null), up, null), pair.scale);
  const plain = ops.linear(x, weight, magnify ? null : bias);
  if (!magnify) return ops.add(plain, low);
  const y = ops.multiply(ops.add(plain, low), magnify(weight));
  return bias ? ops.add(y, bias) : y;
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
