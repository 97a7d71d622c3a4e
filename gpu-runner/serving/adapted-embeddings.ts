/** A text encoder's embedding tables with LoRAs that change them, as full differences do: the tables are no part of its graph. */
import type { AdapterComponent, LoraAdapter, WeightChange } from "../adapters/adapter.ts";
import type { LoraUse, TensorF32 } from "../components.ts";
import { GraphError } from "../graph/ir.ts";
import { type EmbeddingTableName, embeddingTables, type TextEmbeddings } from "../models/text-embeddings.ts";
import { joinItems } from "./item-groups.ts";

/** Changed tables kept, of 150 MB each for a published model. */
const keptTables = 2;

type Tables = Readonly<Partial<Record<EmbeddingTableName, Float32Array>>>;

export class AdaptedEmbeddings {
  readonly #component: AdapterComponent;
  readonly #base: TextEmbeddings;
  /** By the LoRAs and their weights, the last used at the end. */
  readonly #tables = new Map<string, Tables>();

  constructor(component: AdapterComponent, base: TextEmbeddings) {
    this.#component = component;
    this.#base = base;
  }

  /** As the base's `embed`, each item by its own LoRAs. */
  embed(ids: readonly (readonly number[])[], extra: TensorF32 | undefined, loras: readonly (readonly LoraUse[])[]): TensorF32 {
    const touching = loras.map(uses => uses.filter(({ adapter, weight }) => weight !== 0 && this.#changes(adapter).length > 0));
    if (touching.every(uses => uses.length === 0)) return this.#base.embed(ids, extra);
    const items = ids.map((row, i) => this.#base.embed([row], extra, this.#tablesOf(touching[i] ?? [])));
    return joinItems(items.map((embeddings, item) => ({ items: [item], results: { embeddings } }))).embeddings!;
  }

  /** The same LoRAs without what is applied here. */
  rest(loras: readonly LoraUse[]): readonly LoraUse[] {
    return loras.map(use => {
      const own = this.#changes(use.adapter);
      return own.length === 0
        ? use
        : { ...use, adapter: { ...use.adapter, changes: use.adapter.changes.filter(change => !own.includes(change)) } };
    });
  }

  #changes({ changes }: LoraAdapter): LoraAdapter["changes"] {
    return changes.filter(({ component, name }) => component === this.#component && tableOf(name) !== undefined);
  }

  #tablesOf(loras: readonly LoraUse[]): Tables {
    if (loras.length === 0) return {};
    const key = JSON.stringify(loras.map(({ adapter, weight, dora }) => [adapter.hash, weight, dora]));
    const found = this.#tables.get(key) ?? this.#merged(loras);
    this.#tables.delete(key);
    this.#tables.set(key, found);
    if (this.#tables.size > keptTables) this.#tables.delete(this.#tables.keys().next().value!);
    return found;
  }

  #merged(loras: readonly LoraUse[]): Tables {
    const tables: Partial<Record<EmbeddingTableName, Float32Array>> = {};
    for (const { adapter, weight, dora } of loras)
      for (const change of this.#changes(adapter)) {
        const table = tableOf(change.name)!;
        const before = tables[table] ?? this.#base.table(table);
        this.#requireFit(change, before);
        tables[table] = change.merge(before, weight, dora);
      }
    return tables;
  }

  #requireFit({ name, shape }: WeightChange, { length }: Float32Array): void {
    const [rows = 0, width = 0] = shape;
    const wanted = length / this.#base.width;
    if (width === this.#base.width && rows === wanted) return;
    throw new GraphError(name, `adapter on ${this.#component}`, `shape [${wanted},${this.#base.width}]`, `[${shape}]`);
  }
}

function tableOf(name: string): EmbeddingTableName | undefined {
  return (Object.keys(embeddingTables) as EmbeddingTableName[]).find(table => embeddingTables[table] === name);
}
