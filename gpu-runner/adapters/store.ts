/** Adapters that were opened lately, by content, so that the next picture with one finds it ready. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { AdapterKind } from "../../shared/adapter.ts";
import type { DiffusionModel } from "../components.ts";
import type { OpenAdapterOptions } from "./open-options.ts";
import { type OpenedAdapters, openAdapter } from "./registry.ts";

export interface AdapterStoreOptions extends OpenAdapterOptions {
  /** Bytes that idle adapters may take; one that is in use is never dropped. */
  budget: number;
}

type Opened = OpenedAdapters[AdapterKind];

interface Entry {
  opened: Promise<Opened>;
  hash: string;
  bytes: number;
}

/** For one thread: `open` what a batch needs, compute, then `trim`. */
export class AdapterStore {
  readonly #options: AdapterStoreOptions;
  /** The least recently used first. */
  readonly #entries = new Map<string, Entry>();

  constructor(options: AdapterStoreOptions) {
    this.#options = options;
  }

  /** The adapter, opened for this base, until the next `trim`. Throws ModelError where it does not fit; nothing is kept then. */
  async open<K extends AdapterKind>(kind: K, hash: string, path: string, base: DiffusionModel): Promise<OpenedAdapters[K]> {
    const key = `${kind} ${hash} ${base.description.hash}`;
    const known = this.#entries.get(key);
    const opened = known?.opened ?? openAdapter(kind, { hash, path, base, options: this.#options });
    this.#entries.delete(key);
    this.#entries.set(key, { opened, hash, bytes: known?.bytes ?? heldBytes(path) });
    try {
      // The key names the kind, so the entry is of this one.
      return (await opened) as OpenedAdapters[K];
    } catch (error) {
      this.#entries.delete(key);
      throw error;
    }
  }

  /** Content hashes of what is held, the latest used first. */
  resident(): string[] {
    return [...new Set([...this.#entries.values()].reverse().map(({ hash }) => hash))];
  }

  /** Drops what was not used for longest until the rest is within the budget. Nothing may be in use. */
  async trim(): Promise<void> {
    let total = [...this.#entries.values()].reduce((sum, { bytes }) => sum + bytes, 0);
    for (const [key, { opened, bytes }] of [...this.#entries]) {
      if (total <= this.#options.budget) return;
      this.#entries.delete(key);
      total -= bytes;
      await release(await opened);
    }
  }

  /** Drops everything. */
  async close(): Promise<void> {
    const entries = [...this.#entries.values()];
    this.#entries.clear();
    for (const { opened } of entries) await release(await opened);
  }
}

async function release(opened: Opened): Promise<void> {
  if ("release" in opened) await opened.release();
}

/** Most files are half precision and are held in full. */
function heldBytes(path: string): number {
  return 2 * fileBytes(path);
}

function fileBytes(path: string): number {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat?.isDirectory()) return stat?.size ?? 0;
  return readdirSync(path).reduce((sum, name) => sum + fileBytes(join(path, name)), 0);
}
