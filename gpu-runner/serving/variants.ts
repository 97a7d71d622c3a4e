/** The sessions of one graph's variants: the least recently used goes when there are too many. */
import type { Graph } from "../graph/ir.ts";
import type { GraphSession, SessionCache, SessionLease } from "../session.ts";

export interface Variant {
  graph: Graph;
  session: GraphSession;
}

interface Entry {
  graph: Graph;
  lease: SessionLease;
  users: number;
}

export class Variants {
  readonly #sessions: SessionCache;
  readonly #limit: number;
  /** From the least to the most recently used. */
  readonly #entries = new Map<string, Entry>();
  #released = false;

  /** `sessions` are shared with whoever has the same keys; `limit` is how many variants stay open while nothing uses them. */
  constructor(sessions: SessionCache, limit: number) {
    this.#sessions = sessions;
    this.#limit = limit;
  }

  /** Runs over the variant of this key, made if need be. A making that fails leaves nothing, so that the next try makes it anew. */
  async use<T>(
    key: string,
    make: { graph(): Graph; session(graph: Graph): Promise<GraphSession> },
    run: (variant: Variant) => Promise<T>,
  ): Promise<T> {
    if (this.#released) throw new Error(`sessions of ${key}: expected a model in use, got one that was released`);
    const entry = this.#entries.get(key) ?? this.#open(key, make);
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    entry.users++;
    try {
      const session = await entry.lease.session.catch(error => {
        if (this.#entries.get(key) === entry) this.#entries.delete(key);
        throw error;
      });
      return await run({ graph: entry.graph, session });
    } finally {
      entry.users--;
      await this.#evict();
    }
  }

  /** Keys of what is open, from the least to the most recently used. */
  keys(): string[] {
    return [...this.#entries.keys()];
  }

  async release(): Promise<void> {
    this.#released = true;
    const entries = [...this.#entries.values()];
    this.#entries.clear();
    await Promise.all(entries.map(({ lease }) => lease.release()));
  }

  #open(key: string, make: { graph(): Graph; session(graph: Graph): Promise<GraphSession> }): Entry {
    const graph = make.graph();
    return { graph, lease: this.#sessions.acquire(key, () => make.session(graph)), users: 0 };
  }

  async #evict(): Promise<void> {
    for (const [key, entry] of this.#entries) {
      if (this.#entries.size <= this.#limit) return;
      if (entry.users > 0) continue;
      this.#entries.delete(key);
      await entry.lease.release();
    }
  }
}
