/**
 * The image projections of IP-Adapter (Ye et al. 2023): from what CLIP or a face recogniser makes of a picture to tokens that the
 * UNet attends to. Names are those of the released files.
 */
import { symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { WeightSource } from "../weights/weights.ts";
import { layerNorm, linear, linearWithoutBias, Place, partOf, widthOf } from "./layers.ts";

/** Layers of a perceiver that reads picture features into a few tokens. */
export interface ResamplerConfig {
  /** Width of the picture features. */
  imageWidth: number;
  /** Width within. */
  width: number;
  layers: number;
  heads: number;
  /** Heads times their width. */
  attentionWidth: number;
  feedForwardWidth: number;
}

/** By variant; `width` is that of the tokens, which is the base's cross-attention width. */
export type IpProjectionConfig =
  | { variant: "base"; width: number; tokens: number; imageWidth: number }
  | { variant: "full"; width: number; imageWidth: number }
  | { variant: "plus"; width: number; tokens: number; resampler: ResamplerConfig }
  | { variant: "faceid"; width: number; tokens: number; faceWidth: number; hiddenWidth: number }
  | { variant: "faceid-plus"; width: number; tokens: number; faceWidth: number; hiddenWidth: number; resampler: ResamplerConfig };
export type IpVariant = IpProjectionConfig["variant"];

/**
 * Inputs: `embeds`, of base [B, E] (CLIP's projected embedding), of full, plus and faceid-plus [B, P, E] (its last state but one);
 * `latents` [B, n, W] of plus, its learned queries for each item; `face` [B, F] of the face variants. Output: `tokens` [B, n, width];
 * faceid-plus also gives `identity` [B, n, W], the face's own tokens, which its second version adds.
 */
export function buildIpProjection(config: IpProjectionConfig, weights: WeightSource): Graph {
  const graph = new Graph("ip-adapter-projection");
  const place = new Place(graph, weights);
  const batch = symbol("B");
  const features = (width: number): Value => graph.input("embeds", [batch, symbol("P"), width]);
  switch (config.variant) {
    case "base": {
      const { width, tokens, imageWidth } = config;
      const wide = linear(place.at("proj"), graph.input("embeds", [batch, imageWidth]), tokens * width);
      graph.output("tokens", layerNorm(place.at("norm"), ops.reshape(wide, [batch, tokens, width]), epsilon));
      break;
    }
    case "full": {
      const { width, imageWidth } = config;
      const h = ops.gelu(linear(place.at("proj.0"), features(imageWidth), imageWidth));
      graph.output("tokens", layerNorm(place.at("proj.3"), linear(place.at("proj.2"), h, width), epsilon));
      break;
    }
    case "plus": {
      const latents = graph.input("latents", [batch, config.tokens, config.resampler.width]);
      graph.output("tokens", resample(place, features(config.resampler.imageWidth), latents, config.resampler, config.width));
      break;
    }
    case "faceid":
      graph.output("tokens", faceTokens(place, config, config.width));
      break;
    case "faceid-plus": {
      const { resampler, width } = config;
      const identity = faceTokens(place, config, resampler.width);
      graph.output("identity", identity);
      graph.output("tokens", resample(place.at("perceiver_resampler"), features(resampler.imageWidth), identity, resampler, width));
    }
  }
  return graph;
}

const epsilon = 1e-5;

function faceTokens(place: Place, config: { tokens: number; faceWidth: number; hiddenWidth: number }, width: number): Value {
  const { tokens, faceWidth, hiddenWidth } = config;
  const face = place.graph.input("face", [symbol("B"), faceWidth]);
  const wide = linear(place.at("proj.2"), ops.gelu(linear(place.at("proj.0"), face, hiddenWidth)), tokens * width);
  return layerNorm(place.at("norm"), ops.reshape(wide, [face.shape[0]!, tokens, width]), epsilon);
}

function resample(place: Place, features: Value, latents: Value, config: ResamplerConfig, width: number): Value {
  const x = linear(place.at("proj_in"), features, config.width);
  let h = latents;
  for (let i = 0; i < config.layers; i++) h = resamplerLayer(place.at(`layers.${i}`), x, h, config);
  return layerNorm(place.at("norm_out"), linear(place.at("proj_out"), h, width), epsilon);
}

/** The queries attend to picture and queries, then each passes a small net. */
function resamplerLayer(place: Place, x: Value, latents: Value, config: ResamplerConfig): Value {
  const { attentionWidth, heads, feedForwardWidth } = config;
  const attention = place.at("0");
  const normed = layerNorm(attention.at("norm2"), latents, epsilon);
  const context = ops.concat([layerNorm(attention.at("norm1"), x, epsilon), normed], 1);
  const query = linearWithoutBias(attention.at("to_q"), normed, attentionWidth);
  // Keys and values are one matrix in the file.
  const fused = attention.weights.take(`${attention.prefix}to_kv.weight`, [2 * attentionWidth, widthOf(context)]);
  const [key, value] = [0, 1].map(part => ops.linear(context, place.graph.weight(partOf(fused, part, 2)), null));
  const attended = ops.attention(query, key!, value!, { heads, causal: false });
  const h = ops.add(latents, linearWithoutBias(attention.at("to_out"), attended, widthOf(latents)));
  const net = place.at("1");
  const wide = linearWithoutBias(net.at("1"), layerNorm(net.at("0"), h, epsilon), feedForwardWidth);
  return ops.add(h, linearWithoutBias(net.at("3"), ops.gelu(wide), widthOf(h)));
}
