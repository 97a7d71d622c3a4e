/** The attention parts of an IP-Adapter's file, assigned to the UNet's layers by their numbers. */

import type { UnetBase } from "../../components.ts";
import type { StoredTensor } from "../../graph/ir.ts";
import { crossAttentionPlaces } from "../../models/ip-attention.ts";
import type { UnetConfig } from "../../weights/configs.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { IpAdapterLayers, LoraAdapter, LowRank, WeightChange } from "../adapter.ts";
import type { AdapterWeights } from "../adapter-weights.ts";
import { readStored } from "../stored-tensor.ts";

export const layerPrefix = "ip_adapter.";

/** Attentions are counted in pairs: the n-th transformer block has 2n (over itself) and 2n + 1 (over the text). */
export function ipLayers(weights: AdapterWeights, config: UnetConfig): IpAdapterLayers["layers"] {
  const places = crossAttentionPlaces(config);
  const numbers = keyNumbers(weights, /^to_k_ip\.weight$/);
  if (numbers.length !== places.length)
    throw new ModelError(weights.path, `${layerPrefix}*.to_k_ip.weight`, `${places.length} layers as the base has`, String(numbers.length));
  return new Map(
    places.map(({ place, width }, i) => {
      const take = (part: string): StoredTensor => {
        const key = `${layerPrefix}${numbers[i]}.${part}.weight`;
        const stored = weights.tensor(key);
        const expected = [width, config.crossAttentionDim];
        if (String(stored.shape) !== String(expected))
          throw new ModelError(weights.path, key, `shape [${expected}] as ${place} of the base has`, `[${stored.shape}]`);
        return stored;
      };
      return [place, { key: take("to_k_ip"), value: take("to_v_ip") }] as const;
    }),
  );
}

/** Which attention layer of a transformer block has which number of its pair. */
const attentions = ["attn1", "attn2"] as const;
const projections = { to_q: "to_q", to_k: "to_k", to_v: "to_v", to_out: "to_out.0" } as const;

/**
 * The low-rank pairs that FaceID adapters bring, as a LoRA over the base; null where there are none. Throws ModelError for one that the base
 * has no layer for.
 */
export function faceLora(weights: AdapterWeights, base: UnetBase, about: Pick<LoraAdapter, "hash" | "report">): LoraAdapter | null {
  const places = crossAttentionPlaces(base.config);
  const keys = new Set(weights.keys());
  const changes = keyNumbers(weights, /_lora\.down\.weight$/).flatMap(number => {
    const place = places[Math.floor(number / 2)];
    if (!place) throw new ModelError(weights.path, `${layerPrefix}${number}`, `a number below ${2 * places.length}`, String(number));
    return Object.entries(projections).flatMap(([part, projection]): WeightChange[] => {
      const key = `${layerPrefix}${number}.${part}_lora`;
      if (!keys.has(`${key}.down.weight`)) return [];
      return [lowRankChange(weights, key, `${place.place}.${attentions[number % 2]}.${projection}.weight`, base)];
    });
  });
  return changes.length === 0 ? null : { kind: "lora", ...about, changes, bundled: [] };
}

function lowRankChange(weights: AdapterWeights, key: string, name: string, base: UnetBase): WeightChange {
  const [down, up] = ["down", "up"].map(side => readStored(weights.tensor(`${key}.${side}.weight`)));
  const [rank, width] = weights.shape(`${key}.down.weight`, 2) as [number, number];
  const [out, upRank] = weights.shape(`${key}.up.weight`, 2) as [number, number];
  if (upRank !== rank) throw new ModelError(weights.path, `${key}.up.weight`, `[${out}, ${rank}]`, `[${up!.shape}]`);
  const shape = base.shapes.get(name);
  if (!shape || shape[0] !== out || shape[1] !== width)
    throw new ModelError(weights.path, key, `[${shape ?? "no such layer"}] as ${name} of the base has`, `[${[out, width]}]`);
  const lowRank: LowRank = { rank, down: down!.data, up: up!.data, scale: 1 };
  return { component: "unet", name, shape, lowRank, merge: (values, weight) => addProduct(values, lowRank, width, weight) };
}

function addProduct(base: Float32Array, { rank, down, up }: LowRank, width: number, weight: number): Float32Array {
  return base.map((value, i) => {
    const [row, column] = [Math.floor(i / width), i % width];
    let sum = 0;
    for (let r = 0; r < rank; r++) sum += up[row * rank + r]! * down[r * width + column]!;
    return value + weight * sum;
  });
}

/** The numbers of layers that have such a key, in their order. */
function keyNumbers(weights: AdapterWeights, part: RegExp): number[] {
  const numbers = weights.keys().flatMap(key => {
    const match = /^ip_adapter\.(\d+)\.(.+)$/.exec(key);
    return match && part.test(match[2]!) ? [Number(match[1])] : [];
  });
  return [...new Set(numbers)].sort((a, b) => a - b);
}
