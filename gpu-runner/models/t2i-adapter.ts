/** T2IAdapter of diffusers (Mou et al. 2023): a small net from a control map to features that are added to the UNet's levels. */
import { symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { WeightSource } from "../weights/weights.ts";
import { channelsOf, conv1x1, conv3x3, Place } from "./layers.ts";

export const t2iAdapterTypes = ["full_adapter", "full_adapter_xl", "light_adapter"] as const;
export type T2iAdapterType = (typeof t2iAdapterTypes)[number];

export interface T2iAdapterConfig {
  type: T2iAdapterType;
  /** Of the control map: 3, or 1 where it is grey. */
  inChannels: number;
  channels: readonly number[];
  /** Residual blocks of each level. */
  blocks: number;
  /** Squares of this many pixels become channels of one pixel before the first layer. */
  downscale: number;
}

/**
 * Input: `cond` [B, channels * downscale^2, H, W], the control map after `unshuffle`; outputs: `feature.<i>`, unscaled, one for
 * each of the channels (a light adapter has one more).
 */
export function buildT2iAdapter(config: T2iAdapterConfig, weights: WeightSource): Graph {
  const graph = new Graph("t2i-adapter");
  const place = new Place(graph, weights);
  const cond = graph.input("cond", [symbol("B"), config.inChannels * config.downscale ** 2, symbol("H"), symbol("W")]);
  const build = config.type === "light_adapter" ? lightFeatures : fullFeatures;
  build(place, cond, config).forEach((feature, i) => {
    graph.output(`feature.${i}`, feature);
  });
  return graph;
}

function fullFeatures(place: Place, cond: Value, { type, channels, blocks }: T2iAdapterConfig): Value[] {
  // SDXL's halves only once, before its third level.
  const halves = (level: number): boolean => (type === "full_adapter_xl" ? level === 2 : level > 0);
  let h = conv3x3(place.at("conv_in"), cond, channels[0]!);
  return channels.map((width, i) => {
    const level = place.at(`body.${i}`);
    if (halves(i)) h = ops.halve(h);
    if (channelsOf(h) !== width) h = conv1x1(level.at("in_conv"), h, width);
    for (let block = 0; block < blocks; block++) h = fullBlock(level.at(`resnets.${block}`), h);
    return h;
  });
}

function fullBlock(place: Place, x: Value): Value {
  const width = channelsOf(x);
  return ops.add(conv1x1(place.at("block2"), ops.relu(conv3x3(place.at("block1"), x, width)), width), x);
}

function lightFeatures(place: Place, cond: Value, { channels, blocks }: T2iAdapterConfig): Value[] {
  let h = cond;
  return [...channels, channels.at(-1)!].map((width, i) => {
    const level = place.at(`body.${i}`);
    if (i > 0) h = ops.halve(h);
    h = conv1x1(level.at("in_conv"), h, Math.floor(width / 4));
    for (let block = 0; block < blocks; block++) h = lightBlock(level.at(`resnets.${block}`), h);
    h = conv1x1(level.at("out_conv"), h, width);
    return h;
  });
}

function lightBlock(place: Place, x: Value): Value {
  const width = channelsOf(x);
  return ops.add(conv3x3(place.at("block2"), ops.relu(conv3x3(place.at("block1"), x, width)), width), x);
}
