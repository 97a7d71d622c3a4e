/**
 * Weights of which some tensors are changed by adapters. Changed copies lie in a sidecar of the cache, named by what they are
 * made from; every other tensor stays in the base's file.
 */
import { createHash } from "node:crypto";
import { readStored } from "../adapters/stored-tensor.ts";
import type { TensorF32 } from "../components.ts";
import type { StoredTensor } from "../graph/ir.ts";
import { deriveFile } from "../weights/derived-files.ts";
import { withSafetensors } from "../weights/safetensors.ts";
import { bytesOf, pageBytes, writeSafetensors } from "../weights/safetensors-write.ts";
import type { WeightSource } from "../weights/weights.ts";
import type { PatchStep } from "./lora-plan.ts";

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
  const name = `${createHash("sha256").update(patches.key).digest("hex")}.safetensors`;
  const file = deriveFile(patches.cacheDir, "patched", name, temporary => writePatches(base, shapes, patches, temporary));
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

function writePatches(base: WeightSource, shapes: ReadonlyMap<string, readonly number[]>, { steps, alive }: Patches, file: string): void {
  const tensors = [...steps].map(([name, changes]) => {
    const shape = shapes.get(name)!;
    const data = (): Uint8Array[] => {
      alive?.();
      return [bytesOf(merged(base.take(name, shape), changes))];
    };
    return { name, dtype: "F32" as const, shape, data };
  });
  writeSafetensors(file, tensors, { align: pageBytes });
}

/** Every change is one of the base, as its trainer saw it: a norm that a change depends on does not see the other changes. */
function merged(stored: StoredTensor, changes: readonly PatchStep[]): Float32Array {
  const { data: base }: TensorF32 = readStored(stored);
  const results = changes.map(({ change, weight, dora }) => change.merge(base, weight, dora));
  const [only, second] = results;
  if (only && !second) return only;
  return base.map((value, i) => results.reduce((sum, result) => sum + (result[i]! - value), value));
}
