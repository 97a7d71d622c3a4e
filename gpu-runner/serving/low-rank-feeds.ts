/** Packs the low-rank pairs of a batch into the inputs of a session. */
import type { TensorF32 } from "../components.ts";
import { lowRankInputs } from "../models/layers.ts";
import type { Feeds } from "../session.ts";
import type { LoraPlan, Shapes, WeightedPair } from "./lora-plan.ts";

/** Packs kept: with guidance and step ranges a few sets alternate. */
const kept = 4;
/** Bytes that they may take, the latest aside: of a large rank a pack has hundreds of megabytes, for each item of a batch. */
const keptBytes = 2 * 2 ** 30;

/** Remembers the last packs, so that the steps of a picture pack once. */
export class LowRankPacker {
  readonly #packs = new Map<string, Feeds>();

  /** Inputs for these layers; one plan for all items, or a plan for each. */
  pack(plans: readonly LoraPlan[], names: ReadonlySet<string>, shapes: Shapes, perItem: boolean): Feeds {
    const key = JSON.stringify([perItem, plans.map(plan => plan.lowRankKey), [...names]]);
    const found = this.#packs.get(key);
    const feeds = found ?? packAll(plans, names, shapes, perItem);
    // Last used, last in the map's order.
    this.#packs.delete(key);
    this.#packs.set(key, feeds);
    while (this.#packs.size > 1 && (this.#packs.size > kept || this.#bytes() > keptBytes))
      this.#packs.delete(this.#packs.keys().next().value!);
    return feeds;
  }

  #bytes(): number {
    const tensors = [...this.#packs.values()].flatMap(feeds => Object.values(feeds));
    return tensors.reduce((sum, { data }) => sum + data.byteLength, 0);
  }
}

function packAll(plans: readonly LoraPlan[], names: ReadonlySet<string>, shapes: Shapes, perItem: boolean): Feeds {
  const feeds: Record<string, TensorF32> = {};
  for (const name of names) {
    const [out, width] = shapes.get(name) as [number, number];
    const { down, up } = packLayer(
      plans.map(plan => plan.lowRank.get(name) ?? []),
      out,
      width,
    );
    const inputs = lowRankInputs(name);
    const items = (tensor: TensorF32): TensorF32 => (perItem ? tensor : { data: tensor.data, shape: tensor.shape.slice(1) });
    feeds[inputs.down] = items(down);
    feeds[inputs.up] = items(up);
  }
  return feeds;
}

/** Pairs side by side: down [items, R, in] with weight and scale in it, up [items, out, R], with R the greatest sum of ranks and zeros to fill. */
function packLayer(pairs: readonly (readonly WeightedPair[])[], out: number, width: number): { down: TensorF32; up: TensorF32 } {
  const rank = Math.max(...pairs.map(list => list.reduce((sum, { pair }) => sum + pair.rank, 0)));
  const down = new Float32Array(pairs.length * rank * width);
  const up = new Float32Array(pairs.length * out * rank);
  pairs.forEach((list, item) => {
    let first = 0;
    for (const { pair, weight } of list) {
      const factor = weight * pair.scale;
      const start = (item * rank + first) * width;
      for (let i = 0; i < pair.down.length; i++) down[start + i] = pair.down[i]! * factor;
      for (let row = 0; row < out; row++)
        up.set(pair.up.subarray(row * pair.rank, (row + 1) * pair.rank), (item * out + row) * rank + first);
      first += pair.rank;
    }
  });
  return { down: { data: down, shape: [pairs.length, rank, width] }, up: { data: up, shape: [pairs.length, out, rank] } };
}
