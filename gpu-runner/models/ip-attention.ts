/**
 * The decoupled cross-attention of IP-Adapter (Ye et al. 2023). Keys and values of the image tokens are made by a small graph of
 * the adapter's own weights and enter the UNet as inputs, so an adapter is exchanged without another UNet; gains per item
 * (its weight) or per item and pixel (weight times mask) are inputs too.
 */
import type { IpAdapterLayers } from "../adapters/adapter.ts";
import { symbol } from "../graph/dims.ts";
import { Graph, GraphError, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import type { UnetConfig } from "../weights/configs.ts";

/** A transformer block of the UNet, whose second attention reads the text. */
export interface CrossAttentionPlace {
  /** Such as `mid_block.attentions.0.transformer_blocks.0`. */
  place: string;
  width: number;
}

/** All of a UNet's, in the order that IP-Adapter files number them by: down, up, mid. */
export function crossAttentionPlaces({ levels }: UnetConfig): CrossAttentionPlace[] {
  const places: CrossAttentionPlace[] = [];
  const add = (block: string, attentions: number, { channels, transformerLayers }: UnetConfig["levels"][number]): void => {
    for (let i = 0; i < attentions; i++)
      for (let layer = 0; layer < transformerLayers; layer++)
        places.push({ place: `${block}.attentions.${i}.transformer_blocks.${layer}`, width: channels });
  };
  levels.forEach((level, i) => {
    if (level.downAttends) add(`down_blocks.${i}`, level.layers, level);
  });
  levels.toReversed().forEach((level, i) => {
    if (level.upAttends) add(`up_blocks.${i}`, level.layers + 1, level);
  });
  add("mid_block", 1, levels.at(-1)!);
  return places;
}

/** Keys and values of all layers of one width lie side by side in one tensor: key, value, key, value, in the places' order. */
function byWidth(config: UnetConfig): Map<number, CrossAttentionPlace[]> {
  return Map.groupBy(crossAttentionPlaces(config), ({ width }) => width);
}

const packName = (width: number): string => `keys_values.${width}`;

/** Input: `tokens` [B, N, C]; outputs: for each width w of the UNet's n layers of it, `keys_values.<w>` [B, N, 2 * n * w]. */
export function buildIpKeysValues(layers: IpAdapterLayers["layers"], config: UnetConfig): Graph {
  const graph = new Graph("ip-adapter-keys-values");
  const tokens = graph.input("tokens", [symbol("B"), symbol("N"), config.crossAttentionDim]);
  for (const [width, places] of byWidth(config)) {
    const parts = places.flatMap(({ place }) => {
      const layer = layers.get(place);
      if (!layer) throw new GraphError(place, "ip-adapter", "keys and values for this layer of the UNet", "none");
      return [layer.key, layer.value].map(stored => ops.linear(tokens, graph.weight(stored, [width, config.crossAttentionDim]), null));
    });
    graph.output(packName(width), ops.concat(parts, 2));
  }
  return graph;
}

/** What one IP-Adapter adds to the UNet's inputs; `name` is unique to it, such as `ip_adapter.0`. */
export class IpAttentionInputs {
  readonly #graph: Graph;
  readonly #name: string;
  readonly #masked: boolean;
  readonly #packs = new Map<string, { key: Value; value: Value }>();
  readonly #gains = new Map<string, Value>();

  /** Inputs: `<name>.keys_values.<width>` [B, N, ...] as `buildIpKeysValues` gives them, and the gains (see `gain`). */
  constructor(graph: Graph, config: UnetConfig, name: string, masked: boolean) {
    this.#graph = graph;
    this.#name = name;
    this.#masked = masked;
    for (const [width, places] of byWidth(config)) {
      const shape = [symbol("B"), symbol(`${name}.N`), 2 * places.length * width];
      const parts = ops.split(graph.input(`${name}.${packName(width)}`, shape), 2, 2 * places.length);
      places.forEach(({ place }, i) => {
        this.#packs.set(place, { key: parts[2 * i]!, value: parts[2 * i + 1]! });
      });
    }
  }

  /** What is added to the text's attention [B, T, C]: that over the image's keys and values, times the gain. */
  attend(place: string, level: number, query: Value, heads: number): Value {
    const { key, value } = this.#packs.get(place)!;
    return ops.multiply(ops.attention(query, key, value, { heads, causal: false }), this.#gain(level, query));
  }

  /** Input `<name>.gain` [B, 1, 1], or where it is masked `<name>.gain.<level>` [B, T, 1] for each level that attends. */
  #gain(level: number, query: Value): Value {
    const name = this.#masked ? `${this.#name}.gain.${level}` : `${this.#name}.gain`;
    const gain = this.#gains.get(name) ?? this.#graph.input(name, [query.shape[0]!, this.#masked ? query.shape[1]! : 1, 1]);
    this.#gains.set(name, gain);
    return gain;
  }
}
