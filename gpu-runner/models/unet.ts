/** UNet2DConditionModel of diffusers (Rombach et al. 2022), for the Stable Diffusion 1 and 2 families. */
import { symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { UnetConfig } from "../weights/configs.ts";
import type { WeightSource } from "../weights/weights.ts";
import { activations } from "./activations.ts";
import {
  type Activation,
  channelsOf,
  conv,
  conv3x3,
  fromTokens,
  groupNorm,
  layerNorm,
  linear,
  linearWithoutBias,
  Place,
  resnetBlock,
  toTokens,
  widthOf,
} from "./layers.ts";

/** What every block is built with. */
interface Context {
  config: UnetConfig;
  activation: Activation;
  /** Activated time embedding, [B, 4 * first width]. */
  time: Value;
  /** Encoder hidden states, [B, L, cross-attention width]. */
  text: Value;
}

/**
 * Inputs: `sample` [B, Cin, H, W], `time_features` [B, first width] (see `timestepFeatures`), `encoder_hidden_states`
 * [B, L, C]; output: `prediction` [B, Cout, H, W]. Any H and W: a level below has ceil(size / 2), and an upsampler takes the
 * size of the skip that it meets.
 */
export function buildUnet(config: UnetConfig, weights: WeightSource): Graph {
  const graph = new Graph("unet");
  const place = new Place(graph, weights);
  const [batch, height, width] = [symbol("B"), symbol("H"), symbol("W")];
  const sample = graph.input("sample", [batch, config.inChannels, height, width]);
  const features = graph.input("time_features", [batch, config.levels[0]!.channels]);
  const text = graph.input("encoder_hidden_states", [batch, symbol("L"), config.crossAttentionDim]);
  const activation = activations[config.activation];
  const context: Context = { config, activation, time: timeEmbedding(place.at("time_embedding"), features, activation), text };

  const skips = [conv3x3(place.at("conv_in"), sample, config.levels[0]!.channels)];
  let h = skips[0]!;
  config.levels.forEach((_, i) => {
    h = downBlock(place.at(`down_blocks.${i}`), h, i, skips, context);
  });
  h = midBlock(place.at("mid_block"), h, context);
  config.levels.forEach((_, i) => {
    h = upBlock(place.at(`up_blocks.${i}`), h, i, skips, context);
  });
  h = activation(groupNorm(place.at("conv_norm_out"), h, config.groups, config.epsilon));
  graph.output("prediction", conv3x3(place.at("conv_out"), h, config.outChannels));
  return graph;
}

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

function timeEmbedding(place: Place, features: Value, activation: Activation): Value {
  const width = widthOf(features) * 4;
  const embedding = linear(place.at("linear_2"), activation(linear(place.at("linear_1"), features, width)), width);
  // Every residual block activates it again before its own projection: once here is the same.
  return activation(embedding);
}

function downBlock(place: Place, x: Value, index: number, skips: Value[], context: Context): Value {
  const level = context.config.levels[index]!;
  let h = x;
  for (let i = 0; i < level.layers; i++) {
    h = resnet(place.at(`resnets.${i}`), h, level.channels, context);
    if (level.downAttends) h = transformer(place.at(`attentions.${i}`), h, level.heads, level.transformerLayers, context);
    skips.push(h);
  }
  if (index === context.config.levels.length - 1) return h;
  h = conv(place.at("downsamplers.0.conv"), h, level.channels, 3, 2, { top: 1, left: 1, bottom: 1, right: 1 });
  skips.push(h);
  return h;
}

function midBlock(place: Place, x: Value, context: Context): Value {
  const { channels, heads, transformerLayers } = context.config.levels.at(-1)!;
  const h = transformer(place.at("attentions.0"), resnet(place.at("resnets.0"), x, channels, context), heads, transformerLayers, context);
  return resnet(place.at("resnets.1"), h, channels, context);
}

function upBlock(place: Place, x: Value, index: number, skips: Value[], context: Context): Value {
  const { levels } = context.config;
  const level = levels[levels.length - 1 - index]!;
  let h = x;
  for (let i = 0; i <= level.layers; i++) {
    h = resnet(place.at(`resnets.${i}`), ops.concat([h, skips.pop()!], 1), level.channels, context);
    if (level.upAttends) h = transformer(place.at(`attentions.${i}`), h, level.heads, level.transformerLayers, context);
  }
  if (index === levels.length - 1) return h;
  const [, , height, width] = skips.at(-1)!.shape;
  return conv3x3(place.at("upsamplers.0.conv"), ops.resizeNearest(h, height!, width!), level.channels);
}

function resnet(place: Place, x: Value, out: number, { config, activation, time }: Context): Value {
  return resnetBlock(place, x, { out, groups: config.groups, epsilon: config.epsilon, activation, time });
}

/** Norm, projection, blocks over pixels as tokens, projection, plus the input (diffusers' Transformer2DModel). */
function transformer(place: Place, x: Value, heads: number, layers: number, context: Context): Value {
  const channels = channelsOf(x);
  let tokens = toTokens(groupNorm(place.at("norm"), x, context.config.groups, 1e-6));
  tokens = projection(place.at("proj_in"), tokens, context.config);
  for (let i = 0; i < layers; i++) tokens = transformerBlock(place.at(`transformer_blocks.${i}`), tokens, channels, heads, context);
  return ops.add(x, fromTokens(projection(place.at("proj_out"), tokens, context.config), x));
}

/** A linear layer, whether stored as one or as the 1x1 convolution that does the same to every pixel. */
function projection(place: Place, tokens: Value, config: UnetConfig): Value {
  const width = widthOf(tokens);
  const stored = config.useLinearProjection ? [width, width] : [width, width, 1, 1];
  return ops.linear(tokens, place.weight("weight", stored, [width, width]), place.weight("bias", [width]));
}

function transformerBlock(place: Place, x: Value, width: number, heads: number, { text }: Context): Value {
  const normed = layerNorm(place.at("norm1"), x, 1e-5);
  let h = ops.add(attend(place.at("attn1"), normed, normed, heads), x);
  h = ops.add(attend(place.at("attn2"), layerNorm(place.at("norm2"), h, 1e-5), text, heads), h);
  return ops.add(feedForward(place.at("ff"), layerNorm(place.at("norm3"), h, 1e-5), width), h);
}

function attend(place: Place, x: Value, context: Value, heads: number): Value {
  const width = widthOf(x);
  const [query, key, value] = [
    linearWithoutBias(place.at("to_q"), x, width),
    linearWithoutBias(place.at("to_k"), context, width),
    linearWithoutBias(place.at("to_v"), context, width),
  ];
  return linear(place.at("to_out.0"), ops.attention(query, key, value, { heads, causal: false }), width);
}

/** GEGLU (Shazeer 2020): the first half times the gelu of the second. */
function feedForward(place: Place, x: Value, width: number): Value {
  const [value, gate] = ops.split(linear(place.at("net.0.proj"), x, width * 8), 2, 2);
  return linear(place.at("net.2"), ops.multiply(value!, ops.gelu(gate!)), width);
}
