/** CLIP's text transformer (Radford et al. 2021) as transformers' CLIPTextModel computes it. */
import { symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { TextEncoderConfig } from "../weights/configs.ts";
import type { WeightSource } from "../weights/weights.ts";
import { activations } from "./activations.ts";
import { type LowRankLayers, layerNorm, linear, linearWithoutBias, Place, type TrainedLayers } from "./layers.ts";

/**
 * Input: `embeddings` [B, L, C], token plus position rows: they are gathered outside, so each item may have vectors of its
 * own. Outputs for every skip from 0 to the count of layers, [B, L, C]: `hidden.<skip>`, the states after all layers but that
 * many, and `normed.<skip>`, the same after the final norm; where the encoder has a text projection also `projected`
 * [B, L, P], `normed.0` through it.
 */
export function buildTextEncoder(
  config: TextEncoderConfig,
  weights: WeightSource,
  lowRank: LowRankLayers | null = null,
  trained: TrainedLayers | null = null,
): Graph {
  const graph = new Graph("text-encoder");
  const place = new Place(graph, weights, lowRank, trained);
  const states = [graph.input("embeddings", [symbol("B"), symbol("L"), config.width])];
  for (let i = 0; i < config.layers; i++) states.push(encoderLayer(place.at(`encoder.layers.${i}`), states[i]!, config));
  const norm = place.at("final_layer_norm");
  const weight = norm.weight("weight", [config.width]);
  const bias = norm.weight("bias", [config.width]);
  states.toReversed().forEach((state, skip) => {
    const normed = ops.layerNorm(state, weight, bias, { epsilon: config.epsilon });
    graph.output(hiddenName(skip), state);
    graph.output(normedName(skip), normed);
    if (skip === 0 && config.projectionWidth !== null)
      graph.output("projected", linearWithoutBias(place.at("text_projection"), normed, config.projectionWidth));
  });
  return graph;
}

export const hiddenName = (skip: number): string => `hidden.${skip}`;
export const normedName = (skip: number): string => `normed.${skip}`;

function encoderLayer(place: Place, x: Value, config: TextEncoderConfig): Value {
  const attended = attend(place.at("self_attn"), layerNorm(place.at("layer_norm1"), x, config.epsilon), config);
  const h = ops.add(x, attended);
  const mlp = place.at("mlp");
  const wide = linear(mlp.at("fc1"), layerNorm(place.at("layer_norm2"), h, config.epsilon), config.intermediateWidth);
  return ops.add(h, linear(mlp.at("fc2"), activations[config.activation](wide), config.width));
}

/** Causal: a token sees itself and those before it. */
function attend(place: Place, x: Value, { width, heads }: TextEncoderConfig): Value {
  const [query, key, value] = ["q_proj", "k_proj", "v_proj"].map(name => linear(place.at(name), x, width));
  return linear(place.at("out_proj"), ops.attention(query!, key!, value!, { heads, causal: true }), width);
}

/** The position whose final state stands for the whole text: the first end-of-text token. */
export function poolingPosition(
  ids: readonly number[],
  { eosTokenId, vocabularySize }: Pick<TextEncoderConfig, "eosTokenId" | "vocabularySize">,
): number {
  if (eosTokenId !== 2) return Math.max(0, ids.indexOf(eosTokenId));
  // Configs of the first releases say 2, which is not the id in their vocabulary: the largest is taken to be it. Ids beyond the
  // vocabulary, which textual inversions add, are none of it.
  return ids.indexOf(Math.max(...ids.filter(id => id < vocabularySize)));
}
