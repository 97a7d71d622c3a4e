/** ControlNets that were published as their difference from the base's encoder ("difference" is a key of theirs). */
import { createHash } from "node:crypto";
import type { UnetBase } from "../../components.ts";
import type { StoredTensor } from "../../graph/ir.ts";
import { deriveFile } from "../../weights/derived-files.ts";
import { withSafetensors } from "../../weights/safetensors.ts";
import { bytesOf, pageBytes, writeSafetensors } from "../../weights/safetensors-write.ts";
import type { AdapterWeights } from "../adapter-weights.ts";
import { readStored } from "../stored-tensor.ts";
import type { ControlNetKeys } from "./keys.ts";

/**
 * The weights as they are, or where `files` say that they are a difference, the sums with the base's tensors of the same names (those that the
 * base does not have are whole), written to the cache once. Throws ModelError, CacheError.
 */
export function addBase(
  weights: AdapterWeights,
  files: readonly string[],
  keys: ControlNetKeys,
  base: UnetBase,
  cacheDir: string,
): AdapterWeights {
  if (!files.some(file => withSafetensors(file, source => source.entries.has("difference")))) return weights;
  const shared = [...base.shapes.keys()].filter(name => keys.has(name));
  const id = createHash("sha256")
    .update(JSON.stringify([weights.sha256, base.hash]))
    .digest("hex");
  const file = deriveFile(cacheDir, "weights", `${id}.difference.f32.safetensors`, temporary =>
    writeSums(weights, shared, keys, base, temporary),
  );
  return weights.with(
    withSafetensors(file, source => {
      const stored = [...source.entries.values()].map(({ name, offset, byteLength, shape }): [string, StoredTensor] => [
        name,
        { key: name, file, offset, byteLength, shape },
      ]);
      return new Map(stored);
    }),
  );
}

function writeSums(weights: AdapterWeights, names: readonly string[], keys: ControlNetKeys, base: UnetBase, file: string): void {
  const tensors = names.map(name => {
    const difference = weights.tensor(keys.keyFor(name));
    const whole = base.weights.take(name, difference.shape);
    return {
      name: difference.key,
      dtype: "F32" as const,
      shape: difference.shape,
      *data() {
        const sum = readStored(difference).data;
        readStored(whole).data.forEach((value, i) => {
          sum[i]! += value;
        });
        yield bytesOf(sum);
      },
    };
  });
  writeSafetensors(file, tensors, { align: pageBytes });
}
