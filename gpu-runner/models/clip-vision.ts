/** CLIP's vision transformer (Radford et al. 2021) as transformers' CLIPVisionModelWithProjection computes it. */
import { symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { ActivationName } from "../weights/configs.ts";
import type { WeightSource } from "../weights/weights.ts";
import { activations } from "./activations.ts";
import { layerNorm, linear, linearWithoutBias, Place } from "./layers.ts";

export interface ClipVisionConfig {
  width: number;
  intermediateWidth: number;
  layers: number;
  heads: number;
  imageSize: number;
  patchSize: number;
  channels: number;
  projectionWidth: number;
  activation: ActivationName;
  epsilon: number;
}

/** Patches of a picture; the class token stands before them. */
function patchCount({ imageSize, patchSize }: ClipVisionConfig): number {
  return Math.floor(imageSize / patchSize) ** 2;
}

/**
 * Inputs: `patches` [B, P, channels * size^2], the pixels of each patch row by row, channel by channel, and `class_token` [B, 1, C],
 * the class embedding for each item. Output: `penultimate` [B, P + 1, C], the state before the last layer, and `final` [B, P + 1, C],
 * after it.
 */
export function buildClipVision(config: ClipVisionConfig, weights: WeightSource): Graph {
  const graph = new Graph("clip-vision");
  const place = new Place(graph, weights).at("vision_model");
  const { width, patchSize, channels } = config;
  const pixels = channels * patchSize ** 2;
  const count = patchCount(config);
  const patches = graph.input("patches", [symbol("B"), count, pixels]);
  const classToken = graph.input("class_token", [symbol("B"), 1, width]);
  const embeddings = place.at("embeddings");
  // A convolution whose stride is its kernel's size is a linear layer over patches.
  const kernel = embeddings.at("patch_embedding").weight("weight", [width, channels, patchSize, patchSize], [width, pixels]);
  const positions = embeddings.at("position_embedding").weight("weight", [count + 1, width], [1, count + 1, width]);
  const tokens = ops.add(ops.concat([classToken, ops.linear(patches, kernel, null)], 1), positions);
  // Sic: the misspelt name is the one in the files.
  const states = [layerNorm(place.at("pre_layrnorm"), tokens, config.epsilon)];
  for (let i = 0; i < config.layers; i++) states.push(encoderLayer(place.at(`encoder.layers.${i}`), states[i]!, config));
  graph.output("penultimate", states.at(-2)!);
  graph.output("final", states.at(-1)!);
  return graph;
}

/** Input: `token` [B, C], the class token's final state; output: `image_embeds` [B, projection width]. */
export function buildClipVisionHead(config: ClipVisionConfig, weights: WeightSource): Graph {
  const graph = new Graph("clip-vision-head");
  const place = new Place(graph, weights);
  const token = graph.input("token", [symbol("B"), config.width]);
  const normed = layerNorm(place.at("vision_model.post_layernorm"), token, config.epsilon);
  graph.output("image_embeds", linearWithoutBias(place.at("visual_projection"), normed, config.projectionWidth));
  return graph;
}

function encoderLayer(place: Place, x: Value, config: ClipVisionConfig): Value {
  const { width, intermediateWidth, heads, epsilon } = config;
  const attention = place.at("self_attn");
  const normed = layerNorm(place.at("layer_norm1"), x, epsilon);
  const [query, key, value] = ["q_proj", "k_proj", "v_proj"].map(name => linear(attention.at(name), normed, width));
  const attended = ops.attention(query!, key!, value!, { heads, causal: false });
  const h = ops.add(x, linear(attention.at("out_proj"), attended, width));
  const mlp = place.at("mlp");
  const wide = linear(mlp.at("fc1"), layerNorm(place.at("layer_norm2"), h, epsilon), intermediateWidth);
  return ops.add(h, linear(mlp.at("fc2"), activations[config.activation](wide), width));
}
