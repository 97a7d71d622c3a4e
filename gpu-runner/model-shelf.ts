/** Models of one thread: loaded at their first use, kept while they fit into a memory budget. */

/** A loaded model and what it takes. */
export interface Shelved<M> {
  readonly model: M;
  /** Of main memory, about. */
  readonly bytes: number;
  release(): Promise<void>;
}

export interface ShelfOptions<M> {
  /** Bytes. One model may be more: it is loaded all the same, alone. */
  budget: number;
  /** What a model will take, about, before it was ever loaded. */
  estimate(path: string): number;
  load(path: string, hash: string): Promise<Shelved<M>>;
  /** What lies on the shelf has changed. */
  onChange(event: "loaded" | "released", hash: string): void;
}

export class ModelShelf<M> {
  readonly #options: ShelfOptions<M>;
  /** The least recently used first. */
  readonly #models = new Map<string, Shelved<M>>();
  readonly #known = new Map<string, number>();
  readonly #pinned = new Set<string>();
  /** What a training rests on, and what it takes beside. */
  #held: { hash: string; bytes: number } | null = null;

  constructor(options: ShelfOptions<M>) {
    this.#options = options;
  }

  /** Hashes of the loaded models, the latest used first. */
  resident(): string[] {
    return [...this.#models.keys()].reverse();
  }

  /**
   * Until `null` is held, this model stays whatever `unpin` says, and so many bytes of the budget are another's: a training reads the model's
   * weights and has sessions of its own.
   */
  hold(held: { hash: string; bytes: number } | null): void {
    this.#held = held;
  }

  /** From here on models that were used before may give way. */
  unpin(): void {
    this.#pinned.clear();
  }

  /** The model, loaded if need be; it stays at least until `unpin`. One call at a time. @throws what loading throws */
  async use(hash: string, path: string): Promise<M> {
    this.#pinned.add(hash);
    const found = this.#models.get(hash);
    if (found) {
      this.#models.delete(hash);
      this.#models.set(hash, found);
      return found.model;
    }
    await this.#makeRoom(this.#known.get(hash) ?? this.#options.estimate(path));
    const loaded = await this.#options.load(path, hash);
    this.#models.set(hash, loaded);
    this.#known.set(hash, loaded.bytes);
    this.#options.onChange("loaded", hash);
    await this.#makeRoom(0);
    return loaded.model;
  }

  async #makeRoom(bytes: number): Promise<void> {
    for (const [hash, shelved] of this.#models) {
      const held = [...this.#models.values()].reduce((sum, each) => sum + each.bytes, 0);
      if (held + bytes + (this.#held?.bytes ?? 0) <= this.#options.budget) return;
      if (this.#pinned.has(hash) || this.#held?.hash === hash) continue;
      this.#models.delete(hash);
      await shelved.release();
      this.#options.onChange("released", hash);
    }
  }
}
