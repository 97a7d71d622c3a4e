/**
 * Runs a graph with the adapters of each item of a batch. Low-rank pairs and hypernetworks are inputs of a session that is made
 * for the layers they touch; other changes are merged into copies of the touched weights. Items whose weights differ are run
 * apart and joined again.
 */
import type { AdapterComponent } from "../adapters/adapter.ts";
import type { LoraUse, PredictArgs, TensorF32 } from "../components.ts";
import { asSymbol } from "../graph/dims.ts";
import type { Graph, Value } from "../graph/ir.ts";
import { type HyperNetworkForm, hyperNetworkFeeds, hyperNetworkForm } from "../models/hypernetwork.ts";
import type { LowRankLayers } from "../models/layers.ts";
import { createSession, type Feeds, type SessionCache, type SessionOptions } from "../session.ts";
import type { WeightSource } from "../weights/weights.ts";
import { groupItems, joinItems, selectItems } from "./item-groups.ts";
import { type LoraPlan, type LoraTarget, noLoras, planLoras, type Shapes } from "./lora-plan.ts";
import { LowRankPacker } from "./low-rank-feeds.ts";
import { patchedWeights } from "./patched-weights.ts";
import { type Variant, Variants } from "./variants.ts";

export type HyperNetworkUse = NonNullable<PredictArgs["hypernetworks"]>[number][number];

/** What one item of a batch is computed with. */
export interface ItemAdapters {
  loras: readonly LoraUse[];
  hypernetworks: readonly HyperNetworkUse[];
}

/** What adapters make of a graph. */
export interface AdapterFeatures {
  lowRank: LowRankLayers | null;
  hypernetworks: readonly HyperNetworkForm[];
}

export interface AdaptableGraph<F> {
  /** Names the base's weights: graphs of equal keys and features are equal. */
  key: string;
  component: AdapterComponent;
  weights: WeightSource;
  shapes: Shapes;
  /** `features` is plain data: what else the graph depends on. */
  build(weights: WeightSource, features: F & AdapterFeatures): Graph;
}

/** Sessions kept of one graph: the plain one, and what the last few requests needed. */
const keptVariants = 4;
/** Plans kept, each of which holds on to its LoRAs. */
const keptPlans = 8;

export class AdaptedGraph<F extends object> {
  readonly #base: AdaptableGraph<F>;
  readonly #options: SessionOptions;
  readonly #variants: Variants;
  readonly #packer = new LowRankPacker();
  readonly #plans = new Map<string, LoraPlan>();
  #found: LoraTarget | undefined;

  constructor(base: AdaptableGraph<F>, sessions: SessionCache, options: SessionOptions) {
    this.#base = { ...base, weights: byName(base.weights) };
    this.#options = options;
    this.#variants = new Variants(sessions, keptVariants);
  }

  /** Feeds and results of the whole batch; `items` has one entry per item. Throws GraphError for an adapter that does not fit the base. */
  async run(features: F, feeds: Feeds, items: readonly ItemAdapters[]): Promise<Record<string, TensorF32>> {
    const planned = items.map(item => this.#plan(item, features));
    const groups = groupItems(planned.map(({ groupKey }) => groupKey));
    const results = [];
    for (const group of groups)
      results.push({ items: group, results: await this.#runGroup(features, feeds, group, planned, groups.length === 1) });
    return results.length === 1 ? results[0]!.results : joinItems(results);
  }

  release(): Promise<void> {
    return this.#variants.release();
  }

  #plan({ loras, hypernetworks }: ItemAdapters, features: F): PlannedItem {
    const plan = this.#planOf(loras, features);
    const active = hypernetworks.filter(({ weight }) => weight !== 0);
    const groupKey = JSON.stringify([plan.patchKey, active.map(({ adapter, weight }) => [adapter.hash, weight])]);
    return { plan, hypernetworks: active, groupKey };
  }

  /** Every step of a picture asks for the same plans. */
  #planOf(loras: readonly LoraUse[], features: F): LoraPlan {
    if (loras.length === 0) return noLoras;
    const key = JSON.stringify(loras.map(({ adapter, weight, dora }) => [adapter.hash, weight, dora]));
    const plan = this.#plans.get(key) ?? planLoras(loras, this.#target(features));
    // Last used, last in the map's order.
    this.#plans.delete(key);
    this.#plans.set(key, plan);
    if (this.#plans.size > keptPlans) this.#plans.delete(this.#plans.keys().next().value!);
    return plan;
  }

  /** What a graph without adapters shows: which weights it reads, and which of them in linear layers only. */
  #target(features: F): LoraTarget {
    const { build, weights, component, shapes } = this.#base;
    this.#found ??= (() => {
      const plain = build(weights, { ...features, lowRank: null, hypernetworks: [] });
      const read = new Map(plain.weights.map(({ name }) => [name, shapes.get(name)!]));
      return { component, shapes: read, linears: linearWeights(plain) };
    })();
    return this.#found;
  }

  #runGroup(
    features: F,
    feeds: Feeds,
    group: readonly number[],
    planned: readonly PlannedItem[],
    whole: boolean,
  ): Promise<Record<string, TensorF32>> {
    const { plan, hypernetworks } = planned[group[0]!]!;
    const plans = group.map(item => planned[item]!.plan);
    const perItem = plans.some(({ lowRankKey }) => lowRankKey !== plan.lowRankKey);
    // In one order for one set, whichever LoRA came first.
    const names = new Set(plans.flatMap(({ lowRank }) => [...lowRank.keys()]).sort());
    const lowRank = names.size > 0 ? { names, perItem } : null;
    const pairs = lowRank ? this.#packer.pack(perItem ? plans : [plan], names, this.#base.shapes, perItem) : {};
    const adapted = { lowRank, hypernetworks: hypernetworks.map(({ adapter }) => hyperNetworkForm(adapter)) };
    const networkFeeds = hypernetworks.map(({ adapter, weight }, i) => hyperNetworkFeeds(`hypernetwork.${i}`, adapter, weight));
    return this.#withVariant({ ...features, ...adapted }, plan, ({ graph, session }) => {
      const batched = new Set(graph.inputs.filter(({ shape }) => asSymbol(shape[0] ?? 1) === "B").map(({ name }) => name));
      const own = whole ? feeds : selectItems(feeds, group, name => batched.has(name));
      return session.run(Object.assign({}, own, pairs, ...networkFeeds));
    });
  }

  #withVariant<T>(features: F & AdapterFeatures, { patches, patchKey }: LoraPlan, run: (variant: Variant) => Promise<T>): Promise<T> {
    const { key: baseKey, component, weights, shapes, build } = this.#base;
    const { provider, threads, cacheDir, alive } = this.#options;
    const form = { ...features, lowRank: features.lowRank && { ...features.lowRank, names: [...features.lowRank.names] } };
    const key = JSON.stringify([baseKey, component, provider, threads ?? "all", patchKey, form]);
    const source = (): WeightSource =>
      patches.size === 0
        ? weights
        : patchedWeights(weights, shapes, {
            steps: patches,
            key: JSON.stringify([baseKey, component, patchKey, [...patches.keys()]]),
            cacheDir,
            ...(alive && { alive }),
          });
    const make = { graph: () => build(source(), features), session: (graph: Graph) => createSession(graph, this.#options) };
    return this.#variants.use(key, make, run);
  }
}

interface PlannedItem {
  plan: LoraPlan;
  hypernetworks: readonly HyperNetworkUse[];
  groupKey: string;
}

/** The same weights, so that the graph's values have the names that it asks for and not those of a file's layout. */
function byName(weights: WeightSource): WeightSource {
  return { take: (name, shape) => ({ ...weights.take(name, shape), key: name }) };
}

function linearWeights({ nodes }: Graph): Set<string> {
  const weightOf = ({ inputs }: Graph["nodes"][number]): Value[] => inputs.filter(({ source }) => source === "weight");
  const others = new Set(nodes.filter(({ op }) => op !== "linear").flatMap(node => weightOf(node).map(({ name }) => name)));
  const linear = nodes.filter(({ op, inputs }) => op === "linear" && inputs[1]!.source === "weight").map(({ inputs }) => inputs[1]!.name);
  return new Set(linear.filter(name => !others.has(name)));
}
