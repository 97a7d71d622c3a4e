/** CLIP's text transformer (Radford et al. 2021) as transformers' CLIPTextModel computes it. */
import { symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { TextEncoderConfig } from "../weights/configs.ts";
import type { WeightSource } from "../weights/weights.ts";
import { activations } from "./activations.ts";
import { layerNorm, linear, Place } from "./layers.ts";

/**
 * Input: `embeddings` [B, L, C], token plus position rows: they are gathered outside, so each item may have vectors of its
 * own. Outputs [B, L, C]: `last_hidden_state`, `penultimate`, `penultimate_normed`, `skip2_normed` (see `TextEncoding`).
 */
export function buildTextEncoder(config: TextEncoderConfig, weights: WeightSource): Graph {
  const graph = new Graph("text-encoder");
  const place = new Place(graph, weights);
  const states = [graph.input("embeddings", [symbol("B"), symbol("L"), config.width])];
  for (let i = 0; i < config.layers; i++) states.push(encoderLayer(place.at(`encoder.layers.${i}`), states[i]!, config));
  const norm = place.at("final_layer_norm");
  const weight = norm.weight("weight", [config.width]);
  const bias = norm.weight("bias", [config.width]);
  const normed = (state: Value): Value => ops.layerNorm(state, weight, bias, { epsilon: config.epsilon });
  graph.output("last_hidden_state", normed(states.at(-1)!));
  graph.output("penultimate", states.at(-2)!);
  graph.output("penultimate_normed", normed(states.at(-2)!));
  graph.output("skip2_normed", normed(states.at(-3)!));
  return graph;
}

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
export function poolingPosition(ids: readonly number[], eosTokenId: number): number {
  // Configs of the first releases say 2, which is not the id in their vocabulary: the largest id is taken to be it.
  return eosTokenId === 2 ? ids.indexOf(Math.max(...ids)) : Math.max(0, ids.indexOf(eosTokenId));
}
