/** Parts what the LoRAs of an item change in one component: what a session takes as inputs, and what needs weights of its own. */
import type { AdapterComponent, LowRank, WeightChange } from "../adapters/adapter.ts";
import type { LoraUse } from "../components.ts";
import { GraphError } from "../graph/ir.ts";

/** One LoRA's pair for a layer at a weight. */
export interface WeightedPair {
  pair: LowRank;
  weight: number;
}

/** One change of a tensor; applied in order. */
export interface PatchStep {
  change: WeightChange;
  weight: number;
  dora: LoraUse["dora"];
}

export interface LoraPlan {
  /** Pairs by the name of the weight that they are added to. */
  lowRank: ReadonlyMap<string, readonly WeightedPair[]>;
  patches: ReadonlyMap<string, readonly PatchStep[]>;
  /** Equal for plans with equal pairs at equal weights; "" for none. */
  lowRankKey: string;
  /** Equal for plans with equal patches; "" for none. */
  patchKey: string;
}

export const noLoras: LoraPlan = { lowRank: new Map(), patches: new Map(), lowRankKey: "", patchKey: "" };

/** Names and shapes of a component's tensors. */
export type Shapes = ReadonlyMap<string, readonly number[]>;

/** Where LoRAs can take hold. */
export interface LoraTarget {
  component: AdapterComponent;
  /** Of the weights that the graph reads; what it does not read, such as a text encoder's token table, is no target. */
  shapes: Shapes;
  /** Names of the weights that the graph uses in linear layers and nowhere else. */
  linears: ReadonlySet<string>;
}

/**
 * Low-rank changes of a linear layer stay inputs, also beside patches of other tensors or of the same: patches change the
 * base, in the order of the LoRAs, and pairs are added to what comes out. Throws GraphError for a change that does not fit.
 */
export function planLoras(uses: readonly LoraUse[], { component, shapes, linears }: LoraTarget): LoraPlan {
  const lowRank = new Map<string, WeightedPair[]>();
  const patches = new Map<string, PatchStep[]>();
  const keys = { lowRank: [] as string[], patches: [] as string[] };
  for (const { adapter, weight, dora } of uses) {
    if (weight === 0) continue;
    const changes = adapter.changes.filter(change => change.component === component);
    const counts = { pairs: 0, patches: 0 };
    for (const change of changes) {
      requireFit(change, shapes);
      if (change.lowRank && linears.has(change.name)) {
        append(lowRank, change.name, { pair: change.lowRank, weight });
        counts.pairs++;
      } else {
        append(patches, change.name, { change, weight, dora });
        counts.patches++;
      }
    }
    if (counts.pairs > 0) keys.lowRank.push(`${adapter.hash}@${weight}`);
    if (counts.patches > 0) keys.patches.push(`${adapter.hash}@${weight}${dora ? `/${dora}` : ""}`);
  }
  return { lowRank, patches, lowRankKey: keys.lowRank.join("+"), patchKey: keys.patches.join("+") };
}

function append<T>(map: Map<string, T[]>, name: string, value: T): void {
  const list = map.get(name) ?? [];
  list.push(value);
  map.set(name, list);
}

function requireFit({ name, component, shape, lowRank }: WeightChange, shapes: Shapes): void {
  const base = shapes.get(name);
  if (!base) throw new GraphError(name, `adapter on ${component}`, "the name of a tensor that its graph reads", "another");
  // A 1x1 convolution and a linear layer stand for one another.
  const squeezed = (dims: readonly number[]): string =>
    String(dims.length === 4 && dims[2] === 1 && dims[3] === 1 ? dims.slice(0, 2) : dims);
  if (squeezed(shape) !== squeezed(base)) throw new GraphError(name, `adapter on ${component}`, `shape [${base}]`, `[${shape}]`);
  if (!lowRank) return;
  const [out, width] = base as [number, number];
  const sizes = `down [${lowRank.rank}, ${width}] and up [${out}, ${lowRank.rank}]`;
  if (lowRank.down.length !== lowRank.rank * width || lowRank.up.length !== out * lowRank.rank)
    throw new GraphError(name, `adapter on ${component}`, sizes, `${lowRank.down.length} and ${lowRank.up.length} elements`);
}
