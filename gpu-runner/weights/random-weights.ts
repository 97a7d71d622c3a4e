/** Weight files of any geometry with random numbers in them, for benchmarks and tests of size and speed. */
import type { Graph, StoredTensor } from "../graph/ir.ts";
import { bytesOf, writeSafetensors } from "./safetensors-write.ts";
import type { WeightSource } from "./weights.ts";

/** Random values are drawn once and repeated: what they are does not matter, only that they are neither zero nor denormal. */
const period = 1 << 20;

/** Writes a file with every tensor that `build` takes, fp32, about as large as a trained network's; gives the count of parameters. */
export function writeRandomWeights(path: string, build: (weights: WeightSource) => Graph): number {
  const tensors = new Map<string, StoredTensor>();
  build({
    take(name, shape) {
      const tensor = { key: name, file: path, offset: 0, byteLength: 4 * shape.reduce((a, b) => a * b, 1), shape };
      tensors.set(name, tensor);
      return tensor;
    },
  });
  const values = uniform(period);
  const entries = [...tensors.values()].map(({ key, shape, byteLength }, index) => ({
    name: key,
    dtype: "F32" as const,
    shape,
    // No two tensors are equal: there are runtimes that hold equal constants once, which no trained network would let them do.
    data: () => scaled(values, byteLength / 4, shape, 1 + index / 1e5),
  }));
  writeSafetensors(path, entries);
  return [...tensors.values()].reduce((sum, { byteLength }) => sum + byteLength / 4, 0);
}

/** Matrices and kernels have variance 1 / fan-in, which keeps activations of order one; vectors are near one. */
function* scaled(values: Float32Array, count: number, shape: readonly number[], factor: number): Generator<Uint8Array> {
  const fanIn = shape.slice(1).reduce((a, b) => a * b, 1);
  const [scale, shift] = shape.length > 1 ? [Math.sqrt(3 / fanIn), 0] : [0.1, 0.5];
  const block = values.subarray(0, Math.min(period, count)).map(value => value * scale * factor + shift);
  for (let done = 0; done < count; done += period) yield bytesOf(block.subarray(0, Math.min(period, count - done)));
}

/** Uniform in -1..1, the same in every run (Marsaglia's xorshift32). */
function uniform(count: number): Float32Array {
  let state = 2463534242;
  return Float32Array.from({ length: count }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state / 2 ** 31;
  });
}
