import { describe, expect, test } from "vitest";
import { multiply, type Shape, shapeName, symbol } from "../../../gpu-runner/graph/dims.ts";
import { Graph, GraphError, type Value } from "../../../gpu-runner/graph/ir.ts";
import type { OpName } from "../../../gpu-runner/graph/ops.ts";
import * as ops from "../../../gpu-runner/graph/ops.ts";

const [B, H, W, L] = [symbol("B"), symbol("H"), symbol("W"), symbol("L")];
const pixels = multiply(H, W);
const around = { top: 1, left: 1, bottom: 1, right: 1 };

/** What to call an op with, made in a fresh graph. */
type Build = (input: (...shape: Shape) => Value) => Value | Value[];

const inferred = {
  add: { shape: "[B, 8, H, W]", build: x => ops.add(x(B, 8, H, W), x(B, 8, 1, 1)) },
  multiply: { shape: "[B, 8, H, W]", build: x => ops.multiply(x(8, 1, 1), x(B, 8, H, W)) },
  relu: { shape: "[B, 3]", build: x => ops.relu(x(B, 3)) },
  silu: { shape: "[B, 3]", build: x => ops.silu(x(B, 3)) },
  gelu: { shape: "[B, 3]", build: x => ops.gelu(x(B, 3)) },
  quickGelu: { shape: "[B, 3]", build: x => ops.quickGelu(x(B, 3)) },
  activate: { shape: "[B, 3]", build: x => ops.activate(x(B, 3), "mish") },
  clamp: { shape: "[B, 3]", build: x => ops.clamp(x(B, 3), 0, 1) },
  conv2d: {
    shape: "[B, 6, floor((H+1)/2), floor((W+1)/2)]",
    build: x => ops.conv2d(x(B, 4, H, W), x(6, 4, 3, 3), x(6), { stride: 2, pads: around }),
  },
  linear: { shape: "[B, L, 5]", build: x => ops.linear(x(B, L, 3), x(5, 3), x(5)) },
  lowRankLinear: {
    shape: "[B, L, 5]",
    build: x => ops.lowRankLinear(x(B, L, 3), x(5, 3), null, { down: x(B, symbol("R"), 3), up: x(B, 5, symbol("R")) }),
  },
  groupNorm: { shape: "[B, 6, H, W]", build: x => ops.groupNorm(x(B, 6, H, W), x(6), x(6), { groups: 3, epsilon: 1e-5 }) },
  layerNorm: { shape: "[B, L, 6]", build: x => ops.layerNorm(x(B, L, 6), x(6), x(6), { epsilon: 1e-5 }) },
  attention: { shape: "[B, H*W, 8]", build: x => ops.attention(x(B, pixels, 8), x(B, L, 8), x(B, L, 8), { heads: 2, causal: false }) },
  reshape: { shape: "[B, 4, H*W]", build: x => ops.reshape(x(B, 4, H, W), [B, 4, pixels]) },
  transpose: { shape: "[B, L, 4]", build: x => ops.transpose(x(B, 4, L), [0, 2, 1]) },
  concat: { shape: "[B, 7, H, W]", build: x => ops.concat([x(B, 3, H, W), x(B, 4, H, W)], 1) },
  split: { shape: "[B, L, 3] [B, L, 3]", build: x => ops.split(x(B, L, 6), 2, 2) },
  resizeNearest: { shape: "[B, 4, 16, W]", build: x => ops.resizeNearest(x(B, 4, H, W), 16, W) },
  halve: { shape: "[B, 4, floor((H+1)/2), floor((W+1)/2)]", build: x => ops.halve(x(B, 4, H, W)) },
  spatialMean: { shape: "[B, 4, 1, 1]", build: x => ops.spatialMean(x(B, 4, H, W)) },
  subtract: { shape: "[B, 8, H]", build: x => ops.subtract(x(8, 1), x(B, 8, H)) },
  scale: { shape: "[B, 3]", build: x => ops.scale(x(B, 3), 2, 1) },
  reciprocal: { shape: "[B, 3]", build: x => ops.reciprocal(x(B, 3)) },
  sqrt: { shape: "[B, 3]", build: x => ops.sqrt(x(B, 3)) },
  exp: { shape: "[B, 3]", build: x => ops.exp(x(B, 3)) },
  erf: { shape: "[B, 3]", build: x => ops.erf(x(B, 3)) },
  step: { shape: "[B, 3]", build: x => ops.step(x(B, 3), 0) },
  matmul: { shape: "[B, 2, H, W]", build: x => ops.matmul(x(B, 2, 5, H), x(W, 5), { transposeA: true, transposeB: true }) },
  softmax: { shape: "[B, L]", build: x => ops.softmax(x(B, L)) },
  maskFuture: { shape: "[B, L, L]", build: x => ops.maskFuture(x(B, L, L), 0) },
  reduceSum: { shape: "[B, 1, H, 1]", build: x => ops.reduceSum(x(B, 4, H, W), [1, 3]) },
  expand: { shape: "[B, 4, H]", build: x => ops.expand(x(4, 1), [B, 4, H]) },
  slice: { shape: "[B, 2, H]", build: x => ops.slice(x(B, 4, H), 1, 1, 3) },
  pad: { shape: "[B, 4, H+3]", build: x => ops.pad(x(B, 4, H), 2, 1, 2) },
  after: { shape: "[B, 3]", build: x => ops.after(x(B, 3), [x(2, 4)]) },
  moments: { shape: "[B, L, 1] [B, L, 1]", build: x => Object.values(ops.moments(x(B, L, 6), 1e-5)) },
  convInputGradient: {
    shape: "[B, 4, 8, 10]",
    build: x => ops.convInputGradient(x(B, 6, 4, 5), x(6, 4, 3, 3), { stride: 2, pads: around, height: 8, width: 10 }),
  },
  convWeightGradient: {
    shape: "[6, 4, 3, 3]",
    build: x => ops.convWeightGradient(x(B, 4, 8, 10), x(B, 6, 4, 5), { stride: 2, pads: around, kernel: [3, 3] }),
  },
} satisfies Record<OpName, { shape: string; build: Build }>;

const rejected: Record<string, { build: Build; op: OpName; expected: string; got: string }> = {
  "adding what does not broadcast": {
    build: x => ops.add(x(B, 8), x(B, 4)),
    op: "add",
    expected: "dims equal to [B, 8] or 1",
    got: "[B, 4] of x1",
  },
  "multiplying by another symbol": {
    build: x => ops.multiply(x(H), x(W)),
    op: "multiply",
    expected: "dims equal to [H] or 1",
    got: "[W] of x1",
  },
  "a convolution of other channels": {
    build: x => ops.conv2d(x(B, 4, H, W), x(6, 3, 3, 3), x(6), { stride: 1, pads: around }),
    op: "conv2d",
    expected: "3 input channels",
    got: "[B, 4, H, W] of x0",
  },
  "a convolution of a matrix": {
    build: x => ops.conv2d(x(B, 4), x(6, 4, 3, 3), x(6), { stride: 1, pads: around }),
    op: "conv2d",
    expected: "rank 4",
    got: "[B, 4] of x0",
  },
  "a convolution's bias": {
    build: x => ops.conv2d(x(B, 4, H, W), x(6, 4, 3, 3), x(5), { stride: 1, pads: around }),
    op: "conv2d",
    expected: "bias [6]",
    got: "[5] of x2",
  },
  "a linear layer of another width": {
    build: x => ops.linear(x(B, L, 4), x(5, 3), null),
    op: "linear",
    expected: "[..., 3]",
    got: "[B, L, 4] of x0",
  },
  "a linear layer's bias": { build: x => ops.linear(x(B, 3), x(5, 3), x(3)), op: "linear", expected: "bias [5]", got: "[3] of x2" },
  "a low-rank pair of another width": {
    build: x => ops.lowRankLinear(x(B, 3), x(5, 3), null, { down: x(2, 4), up: x(5, 2) }),
    op: "lowRankLinear",
    expected: "[2, 3]",
    got: "[2, 4] of x2",
  },
  "a low-rank pair of two ranks": {
    build: x => ops.lowRankLinear(x(B, 3), x(5, 3), null, { down: x(2, 3), up: x(5, 4) }),
    op: "lowRankLinear",
    expected: "[5, 2]",
    got: "[5, 4] of x3",
  },
  "groups that do not divide": {
    build: x => ops.groupNorm(x(B, 6, H, W), x(6), x(6), { groups: 4, epsilon: 1 }),
    op: "groupNorm",
    expected: "channels that 4 divides",
    got: "[B, 6, H, W] of x0",
  },
  "a group norm's scale": {
    build: x => ops.groupNorm(x(B, 6, H, W), x(3), x(6), { groups: 3, epsilon: 1 }),
    op: "groupNorm",
    expected: "[6]",
    got: "[3] of x1",
  },
  "a layer norm's shift": {
    build: x => ops.layerNorm(x(B, 6), x(6), x(5), { epsilon: 1 }),
    op: "layerNorm",
    expected: "[6]",
    got: "[5] of x2",
  },
  "attention over another width": {
    build: x => ops.attention(x(B, L, 8), x(B, L, 6), x(B, L, 6), { heads: 2, causal: false }),
    op: "attention",
    expected: "[B, S, 8]",
    got: "[B, L, 6] of x1",
  },
  "attention with fewer values than keys": {
    build: x => ops.attention(x(B, L, 8), x(B, L, 8), x(B, 5, 8), { heads: 2, causal: false }),
    op: "attention",
    expected: "[B, L, 8]",
    got: "[B, 5, 8] of x2",
  },
  "attention by heads that do not divide": {
    build: x => ops.attention(x(B, L, 8), x(B, L, 8), x(B, L, 8), { heads: 3, causal: false }),
    op: "attention",
    expected: "a width that 3 heads divide",
    got: "[B, L, 8] of x0",
  },
  "a reshape of other elements": {
    build: x => ops.reshape(x(B, 4, H), [B, 3, H]),
    op: "reshape",
    expected: "3*B*H elements for [B, 3, H]",
    got: "[B, 4, H] of x0",
  },
  "a transpose that repeats an axis": {
    build: x => ops.transpose(x(B, 4), [0, 0]),
    op: "transpose",
    expected: "a permutation of [0,0]",
    got: "[B, 4] of x0",
  },
  "a concat of other heights": {
    build: x => ops.concat([x(B, 3, H), x(B, 3, W)], 1),
    op: "concat",
    expected: "[B, 3, H] but for axis 1",
    got: "[B, 3, W] of x1",
  },
  "a split into parts that do not fit": {
    build: x => ops.split(x(B, 5), 1, 2),
    op: "split",
    expected: "an axis 1 that 2 divides",
    got: "[B, 5] of x0",
  },
  "a product of other depths": {
    build: x => ops.matmul(x(B, 3), x(4, 5)),
    op: "matmul",
    expected: "3 terms of each sum",
    got: "[4, 5] of x1",
  },
  "a slice beyond the end": { build: x => ops.slice(x(B, 5), 1, 2, 6), op: "slice", expected: "2..6 within axis 1", got: "[B, 5] of x0" },
  "a sum over no axis of the value": {
    build: x => ops.reduceSum(x(B, 5), [2]),
    op: "reduceSum",
    expected: "axes [2]",
    got: "[B, 5] of x0",
  },
  "an expansion that shrinks": {
    build: x => ops.expand(x(B, 5), [B, 1]),
    op: "expand",
    expected: "a shape that broadcasts to [B, 1]",
    got: "[B, 5] of x0",
  },
};

function build(make: Build): Value[] {
  const graph = new Graph("test");
  const made = make((...shape) => graph.input(`x${graph.inputs.length}`, shape));
  return Array.isArray(made) ? made : [made];
}

describe("shape inference", () => {
  test.each(Object.entries(inferred))("%s", (_, { build: make, shape }) => {
    expect(
      build(make)
        .map(value => shapeName(value.shape))
        .join(" "),
    ).toBe(shape);
  });
});

describe("an op over shapes that do not fit fails when the graph is built", () => {
  test.each(Object.entries(rejected))("%s", (_, { build: make, op, expected, got }) => {
    expect(() => build(make)).toThrow(GraphError);
    try {
      build(make);
    } catch (error) {
      expect(error).toMatchObject({ op, expected, got, node: `${op}.0` });
    }
  });

  test("the error names the weight that stands there", () => {
    const graph = new Graph("test");
    const weight = graph.weight({ key: "mid.conv.weight", file: "w", offset: 0, byteLength: 24, shape: [2, 3] });
    expect(() => ops.linear(graph.input("x", [B, 4]), weight, null)).toThrow(
      "linear at mid.conv/linear.0: expected [..., 3], got [B, 4] of x",
    );
  });

  test("values of two graphs do not mix, names do not repeat, weights are as large as their shape", () => {
    const [one, two] = [new Graph("one"), new Graph("two")];
    const x = one.input("x", [B]);
    expect(() => ops.add(x, two.input("y", [B]))).toThrow("expected inputs of graph one, got y of graph two");
    expect(() => one.input("x", [B])).toThrow("input at x: expected a name of its own, got a name in use");
    expect(() => one.weight({ key: "w", file: "w", offset: 0, byteLength: 24, shape: [2, 3] }, [5])).toThrow(
      "expected 24 bytes, got shape [5]",
    );
  });
});
