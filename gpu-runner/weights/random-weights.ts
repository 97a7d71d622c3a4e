/** Weight files of any geometry with random numbers in them, for benchmarks and tests of size and speed. */
import type { StoredTensor } from "../graph/ir.ts";
import { bytesOf, writeSafetensors } from "./safetensors-write.ts";
import type { WeightSource } from "./weights.ts";

/** Random values are drawn once and repeated: what they are does not matter, only that they are neither zero nor denormal. */
const period = 1 << 20;

/** Writes a file with every tensor that `build` takes, about as large as a trained network's; gives the count of parameters. */
export function writeRandomWeights(path: string, build: (weights: WeightSource) => void, dtype: "F32" | "BF16" = "F32"): number {
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
    dtype,
    shape,
    // No two tensors are equal: there are runtimes that hold equal constants once, which no trained network would let them do.
    data: () => scaled(values, byteLength / 4, shape, 1 + index / 1e5, dtype === "F32" ? bytesOf : upperHalves),
  }));
  writeSafetensors(path, entries);
  return [...tensors.values()].reduce((sum, { byteLength }) => sum + byteLength / 4, 0);
}

/** Matrices and kernels have variance 1 / fan-in, which keeps activations of order one; vectors are near one. */
function* scaled(
  values: Float32Array,
  count: number,
  shape: readonly number[],
  factor: number,
  encode: (values: Float32Array) => Uint8Array,
): Generator<Uint8Array> {
  const fanIn = shape.slice(1).reduce((a, b) => a * b, 1);
  const [scale, shift] = shape.length > 1 ? [Math.sqrt(3 / fanIn), 0] : [0.1, 0.5];
  const block = encode(values.subarray(0, Math.min(period, count)).map(value => value * scale * factor + shift));
  const bytesPerValue = block.length / Math.min(period, count);
  for (let done = 0; done < count; done += period) yield block.subarray(0, Math.min(period, count - done) * bytesPerValue);
}

/** fp32 as bf16, cut off rather than rounded. */
function upperHalves(values: Float32Array): Uint8Array {
  const halves = new Uint16Array(values.buffer, values.byteOffset, values.length * 2);
  return new Uint8Array(Uint16Array.from({ length: values.length }, (_, i) => halves[2 * i + 1]!).buffer);
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
