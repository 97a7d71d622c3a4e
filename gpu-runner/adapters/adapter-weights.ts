/** The weights of an adapter that is a net of its own: one file or several, mapped as fp32, taken by name and shape. */
import { closeSync, openSync, readSync } from "node:fs";
import { isTorchFile, torchStartBytes } from "../../shared/adapters/torch-file.ts";
import type { StoredTensor } from "../graph/ir.ts";
import { deriveFile } from "../weights/derived-files.ts";
import { sha256OfFile } from "../weights/file-hash.ts";
import { ModelError } from "../weights/model-error.ts";
import { placeTensors } from "../weights/placement.ts";
import { floatDtypes, withSafetensors } from "../weights/safetensors.ts";
import { bytesOf, pageBytes, writeSafetensors } from "../weights/safetensors-write.ts";
import type { WeightSource } from "../weights/weights.ts";
import { withTensorFile } from "./tensor-file.ts";

export interface AdapterWeightOptions {
  /** Where widened weights are kept. */
  cacheDir: string;
}

export class AdapterWeights {
  /** For messages. */
  readonly path: string;
  /** SHA-256 in hex of each file, in the given order. */
  readonly sha256: readonly string[];
  readonly #tensors: ReadonlyMap<string, StoredTensor>;

  constructor(path: string, sha256: readonly string[], tensors: ReadonlyMap<string, StoredTensor>) {
    this.path = path;
    this.sha256 = sha256;
    this.#tensors = tensors;
  }

  /** Throws ModelError for a malformed file or a key that stands in two, CacheError where the cache cannot be written. */
  static async open(path: string, files: readonly string[], { cacheDir }: AdapterWeightOptions): Promise<AdapterWeights> {
    const tensors = new Map<string, StoredTensor>();
    const hashes: string[] = [];
    for (const file of files) {
      const sha256 = await sha256OfFile(file, cacheDir);
      hashes.push(sha256);
      for (const stored of await placeAll(file, sha256, cacheDir)) {
        if (tensors.has(stored.key)) throw new ModelError(file, stored.key, "a key that stands in one file", "one that stands in two");
        tensors.set(stored.key, stored);
      }
    }
    return new AdapterWeights(path, hashes, tensors);
  }

  /** The same tensors and more, or others of the same names. */
  with(tensors: ReadonlyMap<string, StoredTensor>): AdapterWeights {
    return new AdapterWeights(this.path, this.sha256, new Map([...this.#tensors, ...tensors]));
  }

  /** The files that they lie in. */
  files(): string[] {
    return [...new Set([...this.#tensors.values()].map(({ file }) => file))];
  }

  keys(): readonly string[] {
    return [...this.#tensors.keys()];
  }

  /** Shape of a tensor; throws ModelError where there is none of this key or it has another count of axes. */
  shape(key: string, rank: number): readonly number[] {
    const { shape } = this.tensor(key);
    if (shape.length !== rank) throw new ModelError(this.path, key, `${rank} axes`, `[${shape}]`);
    return shape;
  }

  tensor(key: string): StoredTensor {
    const found = this.#tensors.get(key);
    if (!found) throw new ModelError(this.path, key, "a tensor of this name", "none");
    return found;
  }

  /**
   * Lets a graph take its weights by its own names, of which `keyFor` gives the file's. Throws ModelError naming the key for one that
   * is missing, misshapen, or left over and not ignored.
   */
  build<T>(keyFor: (name: string) => string, build: (weights: WeightSource) => T, ignores: (key: string) => boolean = () => false): T {
    const taken = new Set<string>();
    const built = build({
      take: (name, shape) => {
        const key = keyFor(name);
        const stored = this.#tensors.get(key);
        if (!stored) throw new ModelError(this.path, key, `a tensor [${shape}]`, "none");
        if (String(stored.shape) !== String(shape)) throw new ModelError(this.path, key, `shape [${shape}]`, `[${stored.shape}]`);
        taken.add(key);
        return stored;
      },
    });
    const unused = this.keys().filter(key => !taken.has(key) && !ignores(key));
    if (unused.length > 0) {
      const more = unused.length > 1 ? `${unused.length} unused keys, the first [${this.tensor(unused[0]!).shape}]` : "an unused key";
      throw new ModelError(this.path, unused[0]!, "every key to be used", more);
    }
    return built;
  }
}

/** Every floating-point tensor of a file; whole numbers are marks and buffers, which no graph reads. */
async function placeAll(path: string, sha256: string, cacheDir: string): Promise<StoredTensor[]> {
  const file = isTorch(path) ? await asSafetensors(path, sha256, cacheDir) : path;
  const entries = withSafetensors(file, source => [...source.entries.values()].filter(({ name }) => source.isFloat(name)));
  const wanted = entries.map(entry => ({ component: "unet" as const, name: entry.name, file, entry, shape: entry.shape }));
  return placeTensors(wanted, file, sha256, cacheDir);
}

/** By its content: fetched files have no telling names. */
function isTorch(path: string): boolean {
  const start = new Uint8Array(torchStartBytes);
  const descriptor = openSync(path, "r");
  try {
    return isTorchFile(start.subarray(0, readSync(descriptor, start)));
  } finally {
    closeSync(descriptor);
  }
}

/** A file of `torch.save` as safetensors in the cache; it is read as data, and refused where it is more than that. */
async function asSafetensors(path: string, sha256: string, cacheDir: string): Promise<string> {
  return withTensorFile(path, source => {
    // Whole numbers are left out: as fp32 they would be taken for weights.
    const floats = [...source.tensors].filter(([, { dtype }]) => floatDtypes.includes(dtype));
    const tensors = floats.map(([name, { shape }]) => ({
      name: name.replace(/^state_dict\./, ""),
      dtype: "F32" as const,
      shape,
      data: () => [bytesOf(source.read(name))],
    }));
    return deriveFile(cacheDir, "weights", `${sha256}.torch.f32.safetensors`, temporary =>
      writeSafetensors(temporary, tensors, { align: pageBytes }),
    );
  });
}
