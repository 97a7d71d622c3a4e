/**
 * Weights of which some tensors are changed by adapters. Changed copies lie in a sidecar of the cache, named by what they are
 * made from; every other tensor stays in the base's file.
 */
import { createHash, randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync, utimesSync } from "node:fs";
import { dirname, join } from "node:path";
import { readStored } from "../adapters/stored-tensor.ts";
import type { TensorF32 } from "../components.ts";
import type { StoredTensor } from "../graph/ir.ts";
import { CacheError } from "../weights/cache-error.ts";
import { ModelError } from "../weights/model-error.ts";
import { withSafetensors } from "../weights/safetensors.ts";
import { bytesOf, writeSafetensors } from "../weights/safetensors-write.ts";
import type { WeightSource } from "../weights/weights.ts";
import type { PatchStep } from "./lora-plan.ts";

/** Bytes that patches may take on disk; the least recently used go first. */
const budget = 16 * 2 ** 30;

export interface Patches {
  steps: ReadonlyMap<string, readonly PatchStep[]>;
  /** Names base and changes: equal keys have equal results. */
  key: string;
  cacheDir: string;
  /** Called for each tensor that is merged: all of a large model's take minutes. */
  alive?: () => void;
}

/** The base with the changes made. Throws CacheError where the sidecar cannot be written; no partial file is left. */
export function patchedWeights(base: WeightSource, shapes: ReadonlyMap<string, readonly number[]>, patches: Patches): WeightSource {
  const file = join(patches.cacheDir, "patched", `${createHash("sha256").update(patches.key).digest("hex")}.safetensors`);
  if (!existsSync(file)) writePatches(base, shapes, patches, file);
  const now = new Date();
  utimesSync(file, now, now);
  const entries = withSafetensors(file, source => source.entries);
  return {
    take(name, shape) {
      // Taken from the base too, which has to account for every key.
      const original = base.take(name, shape);
      const entry = entries.get(name);
      return entry ? { key: name, file, offset: entry.offset, byteLength: entry.byteLength, shape: original.shape } : original;
    },
  };
}

function writePatches(
  base: WeightSource,
  shapes: ReadonlyMap<string, readonly number[]>,
  { steps, cacheDir, alive }: Patches,
  file: string,
): void {
  const temporary = `${file}.${randomUUID()}.tmp`;
  const tensors = [...steps].map(([name, changes]) => {
    const shape = shapes.get(name)!;
    const data = (): Uint8Array[] => {
      alive?.();
      return [bytesOf(merged(base.take(name, shape), changes))];
    };
    return { name, dtype: "F32" as const, shape, data };
  });
  try {
    mkdirSync(dirname(file), { recursive: true });
    evict(dirname(file), budget);
    try {
      writeSafetensors(temporary, tensors, { align: 4096 });
      renameSync(temporary, file);
    } catch (error) {
      rmSync(temporary, { force: true });
      throw error;
    }
  } catch (error) {
    throw error instanceof ModelError || !(error instanceof Error && "code" in error) ? error : new CacheError(cacheDir, error);
  }
}

/** Every change is one of the base, as its trainer saw it: a norm that a change depends on does not see the other changes. */
function merged(stored: StoredTensor, changes: readonly PatchStep[]): Float32Array {
  const { data: base }: TensorF32 = readStored(stored);
  const results = changes.map(({ change, weight, dora }) => change.merge(base, weight, dora));
  const [only, second] = results;
  if (only && !second) return only;
  return base.map((value, i) => results.reduce((sum, result) => sum + (result[i]! - value), value));
}

/** Removes the least recently used until the rest fits. What a session has mapped stays readable. */
function evict(folder: string, bytes: number): void {
  const files = readdirSync(folder).flatMap(name => {
    const state = statSync(join(folder, name), { throwIfNoEntry: false });
    return state ? [{ name, used: state.mtimeMs, bytes: state.size }] : [];
  });
  let total = files.reduce((sum, file) => sum + file.bytes, 0);
  for (const file of files.sort((a, b) => a.used - b.used)) {
    if (total <= bytes) return;
    rmSync(join(folder, file.name), { force: true });
    total -= file.bytes;
  }
}
