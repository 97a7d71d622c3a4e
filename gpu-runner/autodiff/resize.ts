/** Gradient of the nearest-pixel resize: pixel j of h takes the sum over the pixels i of height with floor(i * h / height) = j. */
import type { Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";

export function resizeNearestGradient(gradient: Value, [, , height, width]: readonly number[]): Value {
  return alongAxis(alongAxis(gradient, 2, height!), 3, width!);
}

function alongAxis(gradient: Value, axis: number, size: number): Value {
  const shape = gradient.shape as number[];
  const from = shape[axis]!;
  if (from === size) return gradient;
  if (from % size === 0) {
    const blocks = ops.reshape(gradient, [...shape.slice(0, axis), size, from / size, ...shape.slice(axis + 1)]);
    return ops.reshape(ops.reduceSum(blocks, [axis + 1]), [...shape.slice(0, axis), size, ...shape.slice(axis + 1)]);
  }
  // Pixel j was copied to those from ceil(j * from / size) up to the next one's first.
  const first = (j: number): number => Math.ceil((j * from) / size);
  const sums = Array.from({ length: size }, (_, j) => {
    const [start, end] = [first(j), first(j + 1)];
    if (start === end) return ops.scale(ops.slice(gradient, axis, 0, 1), 0);
    const copies = ops.slice(gradient, axis, start, end);
    return end - start === 1 ? copies : ops.reduceSum(copies, [axis]);
  });
  return sums.length === 1 ? sums[0]! : ops.concat(sums, axis);
}
