/** UNet2DConditionModel of diffusers (Rombach et al. 2022), for the Stable Diffusion 1, 2 and XL families. */
import type { PredictArgs, TensorF32 } from "../components.ts";
import { symbol } from "../graph/dims.ts";
import { Graph, GraphError, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { UnetConfig } from "../weights/configs.ts";
import type { WeightSource } from "../weights/weights.ts";
import { activations } from "./activations.ts";
import { type HyperNetworkForm, HyperNetworkInputs } from "./hypernetwork.ts";
import { IpAttentionInputs } from "./ip-attention.ts";
import {
  type Activation,
  channelsOf,
  conv,
  conv3x3,
  fromTokens,
  groupNorm,
  type LowRankLayers,
  layerNorm,
  linear,
  linearWithoutBias,
  Place,
  projection,
  resnetBlock,
  type TrainedLayers,
  toTokens,
  widthOf,
} from "./layers.ts";

/** What a UNet has beside the plain one; each combination is a graph of its own. */
export interface UnetFeatures {
  /** ControlNet: `control_down.<i>` is added to skip i, `control_mid` to the middle block's result. */
  control: boolean;
  /** T2I-Adapter: `t2i.<i>` is added at the end of level i, and one beyond the levels to the middle block's result. */
  t2i: number;
  /** One per IP-Adapter, whose inputs are those of `IpAttentionInputs` by the name `ip_adapter.<i>`. */
  ipAdapters: readonly { masked: boolean }[];
  /** Linear layers with low-rank pairs as inputs. */
  lowRank: LowRankLayers | null;
  /** In the order of their application; the inputs of each are those of `HyperNetworkInputs` by the name `hypernetwork.<i>`. */
  hypernetworks: readonly HyperNetworkForm[];
  /** What is trained; absent: nothing. */
  trained?: TrainedLayers;
}

export const plainUnet: UnetFeatures = { control: false, t2i: 0, ipAdapters: [], lowRank: null, hypernetworks: [] };

/** What every block is built with. */
export interface UnetContext {
  config: UnetConfig;
  activation: Activation;
  /** Activated embedding of the time and of what is added to it, [B, 4 * first width]. */
  time: Value;
  /** Encoder hidden states, [B, L, cross-attention width]. */
  text: Value;
  t2i: number;
  ipAdapters: readonly IpAttentionInputs[];
  hypernetworks: readonly HyperNetworkInputs[];
}

/**
 * Inputs: `sample` [B, Cin, H, W], `time_features` [B, first width] (see `timestepFeatures`), `encoder_hidden_states`
 * [B, L, C], `added_conditions` [B, P] where the config has them (see `addedConditions`), `guidance_features` [B, G] where it
 * reads the guidance scale (see `guidanceFeatures`), and those of its features; output: `prediction` [B, Cout, H, W]. Any H and W: a level below has ceil(size / 2), and an upsampler takes the
 * size of the skip that it meets.
 */
export function buildUnet(config: UnetConfig, weights: WeightSource, features: UnetFeatures = plainUnet): Graph {
  const graph = new Graph("unet");
  const place = new Place(graph, weights, features.lowRank, features.trained);
  const context = unetContext(place, config, features);
  const sample = unetSample(graph, config);
  const { skips, middle } = unetEncoder(place, conv3x3(place.at("conv_in"), sample, config.levels[0]!.channels), context);
  let h = middle;
  if (features.control) {
    skips.forEach((skip, i) => {
      skips[i] = addInput(skip, `control_down.${i}`);
    });
    h = addInput(h, "control_mid");
  }
  config.levels.forEach((_, i) => {
    h = upBlock(place.at(`up_blocks.${i}`), h, i, skips, context);
  });
  h = context.activation(groupNorm(place.at("conv_norm_out"), h, config.groups, config.epsilon));
  graph.output("prediction", conv3x3(place.at("conv_out"), h, config.outChannels));
  return graph;
}

/** Input `sample`, [B, Cin, H, W]. */
export function unetSample(graph: Graph, config: UnetConfig): Value {
  return graph.input("sample", [symbol("B"), config.inChannels, symbol("H"), symbol("W")]);
}

/** The inputs that every block reads, and the embedding of the time, to which more may be added. */
export function unetContext(
  place: Place,
  config: UnetConfig,
  { t2i, ipAdapters, hypernetworks }: UnetFeatures,
  more: readonly Value[] = [],
): UnetContext {
  const text = place.graph.input("encoder_hidden_states", [symbol("B"), symbol("L"), config.crossAttentionDim]);
  const activation = activations[config.activation];
  return {
    config,
    activation,
    time: timeEmbedding(place, config, activation, more),
    text,
    t2i,
    ipAdapters: ipAdapters.map(({ masked }, i) => new IpAttentionInputs(place.graph, config, `ip_adapter.${i}`, masked)),
    hypernetworks: hypernetworks.map((form, i) => new HyperNetworkInputs(place.graph, `hypernetwork.${i}`, form)),
  };
}

/** The down blocks and the middle, of which a ControlNet has a copy; `x` is the first convolution's result and the first skip. */
export function unetEncoder(place: Place, x: Value, context: UnetContext): { skips: Value[]; middle: Value } {
  const skips = [x];
  let h = x;
  context.config.levels.forEach((_, i) => {
    h = downBlock(place.at(`down_blocks.${i}`), h, i, skips, context);
  });
  h = midBlock(place.at("mid_block"), h, context);
  const levels = context.config.levels.length;
  return { skips, middle: context.t2i > levels ? addInput(h, t2iName(levels)) : h };
}

/** x plus an input of its shape. */
function addInput(x: Value, name: string): Value {
  return ops.add(x, x.graph.input(name, x.shape));
}

const t2iName = (level: number): string => `t2i.${level}`;

/** Sines and cosines of each timestep, [B, channels] row by row (Vaswani et al. 2017), in fp32 as the reference computes them. */
export function timestepFeatures(
  timesteps: readonly number[],
  channels: number,
  options: { flipSinToCos: boolean; shift: number },
): Float32Array {
  const half = Math.floor(channels / 2);
  const features = new Float32Array(timesteps.length * channels);
  timesteps.forEach((timestep, row) => {
    for (let i = 0; i < half; i++) {
      const exponent = Math.fround(Math.fround(Math.fround(-Math.log(10000)) * i) / Math.fround(half - options.shift));
      const angle = Math.fround(Math.fround(timestep) * Math.fround(Math.exp(exponent)));
      const [first, second] = options.flipSinToCos ? [Math.cos(angle), Math.sin(angle)] : [Math.sin(angle), Math.cos(angle)];
      features[row * channels + i] = first;
      features[row * channels + half + i] = second;
    }
  });
  return features;
}

/**
 * SDXL's conditions beside the text (Podell et al. 2023): pooled text [B, T], then the sines and cosines of each time id
 * [B, n], joined to [B, T + n * timeWidth]. Throws GraphError where they do not have the width that the UNet reads.
 */
export function addedConditions(
  { textEmbeds, timeIds }: NonNullable<PredictArgs["added"]>,
  config: Pick<UnetConfig, "flipSinToCos" | "frequencyShift"> & { added: NonNullable<UnetConfig["added"]> },
): TensorF32 {
  const { width, timeWidth } = config.added;
  const [batch, textWidth] = textEmbeds.shape as [number, number];
  const [rows, count] = timeIds.shape as [number, number];
  if (rows !== batch || textWidth + count * timeWidth !== width)
    throw new GraphError(
      "added",
      "feed",
      `pooled text [B, T] and time ids [B, n] with T + n * ${timeWidth} = ${width}`,
      `[${textEmbeds.shape}] and [${timeIds.shape}]`,
    );
  const times = timestepFeatures([...timeIds.data], timeWidth, { flipSinToCos: config.flipSinToCos, shift: config.frequencyShift });
  const data = new Float32Array(batch * width);
  for (let b = 0; b < batch; b++) {
    data.set(textEmbeds.data.subarray(b * textWidth, (b + 1) * textWidth), b * width);
    data.set(times.subarray(b * count * timeWidth, (b + 1) * count * timeWidth), b * width + textWidth);
  }
  return { data, shape: [batch, width] };
}

/** The guidance scale as a latent consistency model reads it, [B, width]: 1000 (w - 1), embedded as timesteps are. */
export function guidanceFeatures(scales: readonly number[], width: number): TensorF32 {
  const data = timestepFeatures(
    scales.map(scale => (scale - 1) * 1000),
    width,
    { flipSinToCos: false, shift: 1 },
  );
  return { data, shape: [scales.length, width] };
}

function timeEmbedding(place: Place, config: UnetConfig, activation: Activation, more: readonly Value[]): Value {
  const first = config.levels[0]!.channels;
  const time = place.at("time_embedding");
  const given = (name: string, width: number): Value => place.graph.input(name, [symbol("B"), width]);
  let features = given("time_features", first);
  if (config.guidanceWidth)
    features = ops.add(features, linearWithoutBias(time.at("cond_proj"), given("guidance_features", config.guidanceWidth), first));
  let embedding = twoLayers(time, features, first * 4, activation);
  if (config.added)
    embedding = ops.add(
      embedding,
      twoLayers(place.at("add_embedding"), given("added_conditions", config.added.width), first * 4, ops.silu),
    );
  // Every residual block activates it again before its own projection: once here is the same.
  return activation(more.reduce(ops.add, embedding));
}

export function twoLayers(place: Place, x: Value, width: number, activation: Activation): Value {
  return linear(place.at("linear_2"), activation(linear(place.at("linear_1"), x, width)), width);
}

function downBlock(place: Place, x: Value, index: number, skips: Value[], context: UnetContext): Value {
  const level = context.config.levels[index]!;
  const isLast = index === context.config.levels.length - 1;
  const addFeature = (value: Value): Value => (index < context.t2i ? addInput(value, t2iName(index)) : value);
  let h = x;
  for (let i = 0; i < level.layers; i++) {
    h = resnet(place.at(`resnets.${i}`), h, level.channels, context);
    if (level.downAttends) h = transformer(place.at(`attentions.${i}`), h, index, context);
    // The reference adds before the downsampler in a block that attends, after it in one that does not.
    if (i === level.layers - 1 && (level.downAttends || isLast)) h = addFeature(h);
    skips.push(h);
  }
  if (isLast) return h;
  h = conv(place.at("downsamplers.0.conv"), h, level.channels, 3, 2, { top: 1, left: 1, bottom: 1, right: 1 });
  if (!level.downAttends) h = addFeature(h);
  skips.push(h);
  return h;
}

function midBlock(place: Place, x: Value, context: UnetContext): Value {
  const last = context.config.levels.length - 1;
  const { channels } = context.config.levels[last]!;
  const h = transformer(place.at("attentions.0"), resnet(place.at("resnets.0"), x, channels, context), last, context);
  return resnet(place.at("resnets.1"), h, channels, context);
}

function upBlock(place: Place, x: Value, index: number, skips: Value[], context: UnetContext): Value {
  const { levels } = context.config;
  const mirrored = levels.length - 1 - index;
  const level = levels[mirrored]!;
  let h = x;
  for (let i = 0; i <= level.layers; i++) {
    h = resnet(place.at(`resnets.${i}`), ops.concat([h, skips.pop()!], 1), level.channels, context);
    if (level.upAttends) h = transformer(place.at(`attentions.${i}`), h, mirrored, context);
  }
  if (index === levels.length - 1) return h;
  const [, , height, width] = skips.at(-1)!.shape;
  return conv3x3(place.at("upsamplers.0.conv"), ops.resizeNearest(h, height!, width!), level.channels);
}

function resnet(place: Place, x: Value, out: number, { config, activation, time }: UnetContext): Value {
  return resnetBlock(place, x, { out, groups: config.groups, epsilon: config.epsilon, activation, time });
}

/** Norm, projection, blocks over pixels as tokens, projection, plus the input (diffusers' Transformer2DModel). */
function transformer(place: Place, x: Value, level: number, context: UnetContext): Value {
  const stored = context.config.useLinearProjection ? "matrix" : "convolution";
  let tokens = toTokens(groupNorm(place.at("norm"), x, context.config.groups, 1e-6));
  tokens = projection(place.at("proj_in"), tokens, channelsOf(x), stored);
  for (let i = 0; i < context.config.levels[level]!.transformerLayers; i++)
    tokens = transformerBlock(place.at(`transformer_blocks.${i}`), tokens, level, context);
  return ops.add(x, fromTokens(projection(place.at("proj_out"), tokens, channelsOf(x), stored), x));
}

function transformerBlock(place: Place, x: Value, level: number, context: UnetContext): Value {
  const { heads } = context.config.levels[level]!;
  const normed = layerNorm(place.at("norm1"), x, 1e-5);
  let h = ops.add(attend(place.at("attn1"), normed, normed, heads, [], context), x);
  const images = context.ipAdapters.map(
    adapter =>
      (query: Value): Value =>
        adapter.attend(place.prefix.slice(0, -1), level, query, heads),
  );
  h = ops.add(attend(place.at("attn2"), layerNorm(place.at("norm2"), h, 1e-5), context.text, heads, images, context), h);
  return ops.add(feedForward(place.at("ff"), layerNorm(place.at("norm3"), h, 1e-5), widthOf(x)), h);
}

/** Attention of x over a context, which hypernetworks may change, plus what `others` make of the same queries. */
function attend(
  place: Place,
  x: Value,
  over: Value,
  heads: number,
  others: readonly ((query: Value) => Value)[],
  { hypernetworks }: UnetContext,
): Value {
  const width = widthOf(x);
  const changed = (part: "key" | "value"): Value => hypernetworks.reduce((context, network) => network.apply(part, context), over);
  const [query, key, value] = [
    linearWithoutBias(place.at("to_q"), x, width),
    linearWithoutBias(place.at("to_k"), changed("key"), width),
    linearWithoutBias(place.at("to_v"), changed("value"), width),
  ];
  const attended = ops.attention(query, key, value, { heads, causal: false });
  return linear(place.at("to_out.0"), others.map(other => other(query)).reduce(ops.add, attended), width);
}

/** GEGLU (Shazeer 2020): the first half times the gelu of the second. */
function feedForward(place: Place, x: Value, width: number): Value {
  const [value, gate] = ops.split(linear(place.at("net.0.proj"), x, width * 8), 2, 2);
  return linear(place.at("net.2"), ops.multiply(value!, ops.gelu(gate!)), width);
}
