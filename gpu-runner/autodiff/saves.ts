/**
 * What of a node its gradients read, and which therefore stays in memory from the forward pass until then: per input, that gradient's
 * share. Statistics of norms and scores of attention are computed again, since both cost less than keeping them.
 */
import type { Node, Value } from "../graph/ir.ts";
import type { OpName } from "../graph/ops.ts";

/** An input by its index, or the results. */
export type Saved = number | "outputs";

/** One list per input; the last stands for all further ones, and an input's own shape is not a value. */
export const saves = {
  add: [[]],
  subtract: [[]],
  multiply: [[1], [0]],
  scale: [[]],
  step: [[]],
  clamp: [[0]],
  relu: [["outputs"]],
  silu: [[0]],
  gelu: [[0]],
  quickGelu: [[0]],
  activate: [[0, "outputs"]],
  reciprocal: [["outputs"]],
  sqrt: [["outputs"]],
  exp: [["outputs"]],
  erf: [[0]],
  // Of a frozen weight, which lies in a file, nothing more than that.
  conv2d: [[1], [0], []],
  convInputGradient: [[1], [0]],
  convWeightGradient: [[1], [0]],
  linear: [[1], [0], []],
  // That of down needs up, and the other way round.
  lowRankLinear: [[1, 2, 3], [0], [0, 3], [0, 2], []],
  matmul: [[1], [0]],
  groupNorm: [[0, 1], [0], []],
  layerNorm: [[0, 1], [0], []],
  moments: [[0, "outputs"]],
  attention: [[0, 1, 2, "outputs"]],
  softmax: [["outputs"]],
  maskFuture: [[]],
  after: [[]],
  reshape: [[]],
  transpose: [[]],
  concat: [[]],
  // Only where a part has no gradient, whose zeros are made from it.
  split: [["outputs"]],
  slice: [[]],
  pad: [[]],
  reduceSum: [[]],
  expand: [[]],
  resizeNearest: [[]],
  halve: [[]],
  spatialMean: [[]],
} as const satisfies Record<OpName, readonly (readonly Saved[])[]>;

/** What the gradients of a node read, where they are wanted in the values of `reaching`. */
export function savedValues(node: Node, reaching: ReadonlySet<Value>): ReadonlySet<Value> {
  const table: readonly (readonly Saved[])[] = saves[node.op];
  const saved = node.inputs.flatMap((input, i) => (reaching.has(input) ? table[Math.min(i, table.length - 1)]! : []));
  return new Set(saved.flatMap(each => (each === "outputs" ? node.outputs : node.inputs[each]!)));
}

/** Of a value whose dims are numbers. */
export function bytesOf({ shape }: Value): number {
  return 4 * (shape as readonly number[]).reduce((a, b) => a * b, 1);
}
