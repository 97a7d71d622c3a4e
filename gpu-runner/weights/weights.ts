/** Where a model takes its weights from: by name and shape, so that a missing, unused or misshapen key is an error that names it. */
import type { StoredTensor } from "../graph/ir.ts";
import { ModelError } from "./model-error.ts";
import type { SafetensorsFile } from "./safetensors.ts";

/** How one component's names relate to the keys of its file. */
export interface KeyLayout {
  /** Keys that a name may have in published files, in order of preference. */
  keysFor(name: string): readonly string[];
  /** Keys that belong to another component or are known to be of no use. */
  ignores(key: string): boolean;
}

/** What a model under construction sees. */
export interface WeightSource {
  take(name: string, shape: readonly number[]): StoredTensor;
}

export class Weights implements WeightSource {
  readonly file: string;
  readonly #tensors: ReadonlyMap<string, StoredTensor>;
  readonly #layout: KeyLayout;
  readonly #taken = new Set<string>();
  /** Shapes of what was taken, by the graphs' names. */
  readonly shapes = new Map<string, readonly number[]>();

  /** `source` must hold fp32 at offsets that are multiples of 4 (see `placement.ts`). */
  constructor(source: SafetensorsFile, layout: KeyLayout) {
    this.file = source.path;
    this.#layout = layout;
    const floats = [...source.entries.values()].filter(entry => entry.dtype === "F32");
    this.#tensors = new Map(
      floats.map(({ name, offset, byteLength, shape }) => [name, { key: name, file: source.path, offset, byteLength, shape }]),
    );
  }

  /** The tensor of this name. Throws ModelError if there is none or its shape is another. */
  take(name: string, shape: readonly number[]): StoredTensor {
    const keys = this.#layout.keysFor(name);
    const key = keys.find(candidate => this.#tensors.has(candidate));
    if (key === undefined) throw new ModelError(this.file, keys[0] ?? name, `a tensor [${shape}]`, "none");
    const tensor = this.#tensors.get(key)!;
    if (String(tensor.shape) !== String(shape)) throw new ModelError(this.file, key, `shape [${shape}]`, `[${tensor.shape}]`);
    this.#taken.add(key);
    this.shapes.set(name, shape);
    return tensor;
  }

  /** Throws ModelError naming the keys that nothing took: the file holds something that the graph does not compute. */
  requireAllTaken(): void {
    const unused = [...this.#tensors.keys()].filter(key => !this.#taken.has(key) && !this.#layout.ignores(key));
    if (unused.length === 0) return;
    const more = unused.length > 1 ? `${unused.length} unused keys, the first [${this.#tensors.get(unused[0]!)!.shape}]` : "an unused key";
    throw new ModelError(this.file, unused[0]!, "every key to be used", more);
  }
}
