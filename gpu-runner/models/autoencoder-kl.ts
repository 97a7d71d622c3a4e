/** AutoencoderKL of diffusers (Rombach et al. 2022): encoder and decoder are separate graphs, since most jobs need one only. */
import { multiply, symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { VaeConfig } from "../weights/configs.ts";
import type { WeightSource } from "../weights/weights.ts";
import { activations } from "./activations.ts";
import { channelsOf, conv, conv1x1, conv3x3, fromTokens, groupNorm, linear, Place, resnetBlock, toTokens } from "./layers.ts";

const epsilon = 1e-6;

/** Input: `image` [B, 3, H, W]; outputs: `mean` and `logvar` (clamped to -30..20), [B, C, H/8, W/8] where there are four levels. */
export function buildVaeEncoder(config: VaeConfig, weights: WeightSource): Graph {
  const graph = new Graph("vae-encoder");
  const place = new Place(graph, weights);
  const encoder = place.at("encoder");
  let h = graph.input("image", [symbol("B"), config.inChannels, symbol("H"), symbol("W")]);
  h = conv3x3(encoder.at("conv_in"), h, config.channels[0]!);
  config.channels.forEach((channels, i) => {
    const block = encoder.at(`down_blocks.${i}`);
    for (let layer = 0; layer < config.layersPerBlock; layer++) h = resnet(block.at(`resnets.${layer}`), h, channels, config);
    // The reference pads right and bottom only.
    if (i < config.channels.length - 1)
      h = conv(block.at("downsamplers.0.conv"), h, channels, 3, 2, { top: 0, left: 0, bottom: 1, right: 1 });
  });
  h = midBlock(encoder.at("mid_block"), h, config);
  h = conv3x3(encoder.at("conv_out"), normOut(encoder, h, config), config.latentChannels * 2);
  if (config.useQuantConv) h = conv1x1(place.at("quant_conv"), h, config.latentChannels * 2);
  const [mean, logvar] = ops.split(h, 1, 2);
  graph.output("mean", mean!);
  graph.output("logvar", ops.clamp(logvar!, -30, 20));
  return graph;
}

/** Input: `latents` [B, C, H, W], unscaled; output: `sample` [B, 3, 8H, 8W] where there are four levels, not clamped. */
export function buildVaeDecoder(config: VaeConfig, weights: WeightSource): Graph {
  const graph = new Graph("vae-decoder");
  const place = new Place(graph, weights);
  const decoder = place.at("decoder");
  let h = graph.input("latents", [symbol("B"), config.latentChannels, symbol("H"), symbol("W")]);
  if (config.usePostQuantConv) h = conv1x1(place.at("post_quant_conv"), h, config.latentChannels);
  const reversed = [...config.channels].reverse();
  h = midBlock(decoder.at("mid_block"), conv3x3(decoder.at("conv_in"), h, reversed[0]!), config);
  reversed.forEach((channels, i) => {
    const block = decoder.at(`up_blocks.${i}`);
    for (let layer = 0; layer <= config.layersPerBlock; layer++) h = resnet(block.at(`resnets.${layer}`), h, channels, config);
    if (i < reversed.length - 1) h = conv3x3(block.at("upsamplers.0.conv"), double(h), channels);
  });
  graph.output("sample", conv3x3(decoder.at("conv_out"), normOut(decoder, h, config), config.outChannels));
  return graph;
}

function resnet(place: Place, x: Value, out: number, config: VaeConfig): Value {
  return resnetBlock(place, x, { out, groups: config.groups, epsilon, activation: activations[config.activation], time: null });
}

function midBlock(place: Place, x: Value, config: VaeConfig): Value {
  const channels = channelsOf(x);
  let h = resnet(place.at("resnets.0"), x, channels, config);
  if (config.midBlockAddAttention) h = attend(place.at("attentions.0"), h, config.groups);
  return resnet(place.at("resnets.1"), h, channels, config);
}

/** One head over all pixels, plus the input. */
function attend(place: Place, x: Value, groups: number): Value {
  const channels = channelsOf(x);
  const tokens = toTokens(groupNorm(place.at("group_norm"), x, groups, epsilon));
  const [query, key, value] = ["to_q", "to_k", "to_v"].map(name => linear(place.at(name), tokens, channels));
  const mixed = ops.attention(query!, key!, value!, { heads: 1, causal: false });
  return ops.add(fromTokens(linear(place.at("to_out.0"), mixed, channels), x), x);
}

function normOut(place: Place, x: Value, config: VaeConfig): Value {
  return activations[config.activation](groupNorm(place.at("conv_norm_out"), x, config.groups, epsilon));
}

function double(x: Value): Value {
  const [, , height, width] = x.shape;
  return ops.resizeNearest(x, multiply(height!, 2), multiply(width!, 2));
}
