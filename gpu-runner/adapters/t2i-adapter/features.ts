/** Scales and sums the features of T2I-Adapters (diffusers' MultiAdapter). */
import type { TensorF32 } from "../../components.ts";
import { GraphError } from "../../graph/ir.ts";

/** `weights`: one per batch item. Throws GraphError where the adapters don't have the same levels. */
export function sumFeatures(adapters: readonly { features: readonly TensorF32[]; weights: readonly number[] }[]): TensorF32[] {
  const [first] = adapters;
  if (!first) return [];
  return first.features.map(({ data, shape }, level) => {
    const sum = new Float32Array(data.length);
    const size = data.length / shape[0]!;
    for (const { features, weights } of adapters) {
      const own = features[level];
      if (!own || String(own.shape) !== String(shape) || weights.length !== shape[0])
        throw new GraphError(`t2i-adapter feature ${level}`, "sum", `[${shape}] and a weight per item`, `[${own?.shape ?? "none"}]`);
      for (let i = 0; i < sum.length; i++) sum[i]! += own.data[i]! * weights[Math.floor(i / size)]!;
    }
    return { data: sum, shape };
  });
}
