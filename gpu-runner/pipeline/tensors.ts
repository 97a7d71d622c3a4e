/** Small operations on batches of tensors. */
import type { TensorF32 } from "../components.ts";

export function elements(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1);
}

/** Puts [1, …] or [n, …] tensors of equal item shape one after another. */
export function concatItems(tensors: readonly TensorF32[]): TensorF32 {
  const [first] = tensors;
  const [, ...rest] = first!.shape;
  const data = new Float32Array(tensors.reduce((sum, tensor) => sum + tensor.data.length, 0));
  let at = 0;
  for (const tensor of tensors) {
    data.set(tensor.data, at);
    at += tensor.data.length;
  }
  return { data, shape: [data.length / elements(rest), ...rest] };
}

/** [1, L, A] and [1, L, B] to [1, L, A + B]. */
export function concatWidths(a: TensorF32, b: TensorF32): TensorF32 {
  const [, length, widthA] = a.shape as [number, number, number];
  const widthB = b.shape[2]!;
  const data = new Float32Array(length * (widthA + widthB));
  for (let i = 0; i < length; i++) {
    data.set(a.data.subarray(i * widthA, (i + 1) * widthA), i * (widthA + widthB));
    data.set(b.data.subarray(i * widthB, (i + 1) * widthB), i * (widthA + widthB) + widthA);
  }
  return { data, shape: [1, length, widthA + widthB] };
}

export function concat(parts: readonly Float32Array[]): Float32Array {
  return concatItems(parts.map(data => ({ data, shape: [1, data.length] }))).data;
}

/** `count` equal parts of an array, without copying. */
export function split(data: Float32Array, count: number): Float32Array[] {
  const size = data.length / count;
  return Array.from({ length: count }, (_, i) => data.subarray(i * size, (i + 1) * size));
}
