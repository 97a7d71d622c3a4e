/** ControlNetModel of diffusers (Zhang et al. 2023): a copy of the UNet's encoder that reads a control map as well. */
import { multiply, symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { UnetConfig } from "../weights/configs.ts";
import type { WeightSource } from "../weights/weights.ts";
import { channelsOf, conv, conv1x1, conv3x3, layerNorm, linear, Place, partOf, widthOf } from "./layers.ts";
import { plainUnet, twoLayers, unetContext, unetEncoder, unetSample } from "./unet.ts";

export interface ControlNetConfig {
  unet: UnetConfig;
  conditioningChannels: number;
  /** Of the control map's encoder, from the full resolution down: each after the first halves it. */
  embeddingChannels: readonly number[];
  channelOrder: "rgb" | "bgr";
  globalPool: boolean;
  /** One net for several kinds of control; null: for one. */
  union: UnionConfig | null;
}

export interface UnionConfig {
  controls: number;
  /** Of the transformer over controls. */
  width: number;
  layers: number;
  /** Width of the embedding of each control's switch. */
  switchWidth: number;
}

/** How many pixels of a control map stand for one of the latents, along one axis. */
export function controlMapFactor({ embeddingChannels }: ControlNetConfig): number {
  return 2 ** (embeddingChannels.length - 1);
}

/**
 * Inputs: those of the plain UNet, and `cond` [B, 3, f * H, f * W] in 0..1, f as `controlMapFactor` says; of a union
 * `control_switches` [B, controls * switch width] and `task` [B, width]. Outputs, unscaled: `down.<i>` with the shape of the
 * UNet's skip i, and `mid`.
 */
export function buildControlNet(config: ControlNetConfig, weights: WeightSource): Graph {
  const graph = new Graph("controlnet");
  const place = new Place(graph, weights);
  const { unet, union } = config;
  const context = unetContext(place, unet, plainUnet, union ? [switchEmbedding(place, unet, union)] : []);
  const sample = conv3x3(place.at("conv_in"), unetSample(graph, unet), unet.levels[0]!.channels);
  const hint = encodeControlMap(place.at("controlnet_cond_embedding"), config);
  const x = ops.add(sample, union ? ops.add(hint, taskShift(place, hint, union)) : hint);
  const { skips, middle } = unetEncoder(place, x, context);
  skips.forEach((skip, i) => {
    graph.output(`down.${i}`, conv1x1(place.at(`controlnet_down_blocks.${i}`), skip, channelsOf(skip)));
  });
  graph.output("mid", conv1x1(place.at("controlnet_mid_block"), middle, channelsOf(middle)));
  return graph;
}

/** The control map's own small encoder, down to the latents' size. */
function encodeControlMap(place: Place, config: ControlNetConfig): Value {
  const { conditioningChannels, embeddingChannels, unet } = config;
  const size = (name: string) => multiply(symbol(name), controlMapFactor(config));
  const cond = place.graph.input("cond", [symbol("B"), conditioningChannels, size("H"), size("W")]);
  let h = ops.silu(conv3x3(place.at("conv_in"), cond, embeddingChannels[0]!));
  embeddingChannels.slice(1).forEach((channels, i) => {
    h = ops.silu(conv3x3(place.at(`blocks.${2 * i}`), h, embeddingChannels[i]!));
    h = ops.silu(conv(place.at(`blocks.${2 * i + 1}`), h, channels, 3, 2, { top: 1, left: 1, bottom: 1, right: 1 }));
  });
  return conv3x3(place.at("conv_out"), h, unet.levels[0]!.channels);
}

/** Which controls of a union are in use, as a share of the time's embedding. */
function switchEmbedding(place: Place, unet: UnetConfig, { controls, switchWidth }: UnionConfig): Value {
  const switches = place.graph.input("control_switches", [symbol("B"), controls * switchWidth]);
  return twoLayers(place.at("control_add_embedding"), switches, unet.levels[0]!.channels * 4, ops.silu);
}

/**
 * What a union's transformer over controls adds to the control map's features, [B, C, 1, 1]. The released nets were trained with
 * an attention whose axes are swapped: it runs over the batch, whose items are the halves of one picture's guidance and thus
 * equal here, so that each item attends to itself alone and only the values matter.
 */
function taskShift(place: Place, hint: Value, { width, layers }: UnionConfig): Value {
  const [batch, channels] = hint.shape;
  const mean = ops.reshape(ops.spatialMean(hint), [batch!, channels!]);
  let token = ops.add(mean, place.graph.input("task", [batch!, width]));
  // Sic: the misspelt name is the one in the files.
  for (let i = 0; i < layers; i++) token = taskLayer(place.at(`transformer_layes.${i}`), token);
  const shift = linear(place.at("spatial_ch_projs"), token, channelsOf(hint));
  return ops.reshape(shift, [batch!, channels!, 1, 1]);
}

function taskLayer(place: Place, x: Value): Value {
  const width = widthOf(x);
  const attention = place.at("attn");
  const thirdPart = (name: string, rows: readonly number[]): Value => {
    const stored = attention.weights.take(`${attention.prefix}${name}`, [3 * width, ...rows]);
    return place.graph.weight(partOf(stored, 2, 3));
  };
  const values = ops.linear(layerNorm(place.at("ln_1"), x, 1e-5), thirdPart("in_proj_weight", [width]), thirdPart("in_proj_bias", []));
  const h = ops.add(x, linear(attention.at("out_proj"), values, width));
  const mlp = place.at("mlp");
  const wide = linear(mlp.at("c_fc"), layerNorm(place.at("ln_2"), h, 1e-5), width * 4);
  return ops.add(h, linear(mlp.at("c_proj"), ops.quickGelu(wide), width));
}
