/** ONNX for the CPU provider: fp32, fused contrib ops where the CPU has them (see docs/graph.md for the measurements). */
import { product, type Shape } from "../dims.ts";
import type { EmitRules, Emitter } from "../emitter.ts";
import type { NodeOf, Value } from "../ir.ts";
import { type AttributeValue, microsoft, type OnnxBuilder } from "../onnx.ts";
import type { ActivationKind } from "../ops.ts";
import { convolutionOps, emitConv, emitConvInputGradient, emitConvWeightGradient } from "./cpu-convolutions.ts";

/** ONNX's default parameters are PyTorch's. */
const activations = {
  leakyRelu: "LeakyRelu",
  elu: "Elu",
  hardSwish: "HardSwish",
  tanh: "Tanh",
  sigmoid: "Sigmoid",
  softsign: "Softsign",
  mish: "Mish",
} satisfies Record<ActivationKind, string>;

const rules: EmitRules = {
  add: (node, onnx) => elementwise("Add", node, onnx),
  multiply: (node, onnx) => elementwise("Mul", node, onnx),
  relu: (node, onnx) => onnx.node("Relu", names(node, onnx), node.outputs),
  silu: (node, onnx) => onnx.node("QuickGelu", names(node, onnx), node.outputs, { alpha: { float: 1 } }, microsoft),
  gelu: (node, onnx) => onnx.node("Gelu", names(node, onnx), node.outputs, {}, microsoft),
  quickGelu: (node, onnx) => onnx.node("QuickGelu", names(node, onnx), node.outputs, { alpha: { float: 1.702 } }, microsoft),
  activate: (node, onnx) => onnx.node(activations[node.attributes.kind], names(node, onnx), node.outputs),
  clamp: (node, onnx) => {
    const { minimum, maximum } = node.attributes;
    onnx.node("Clip", [...names(node, onnx), onnx.floats([minimum], []), onnx.floats([maximum], [])], node.outputs);
  },
  conv2d: emitConv,
  linear: emitLinear,
  lowRankLinear: emitLowRankLinear,
  groupNorm: emitGroupNorm,
  layerNorm: (node, onnx) =>
    onnx.node("LayerNormalization", names(node, onnx), node.outputs, { axis: -1, epsilon: { float: node.attributes.epsilon } }),
  attention: (node, onnx) => {
    const { heads, causal } = node.attributes;
    onnx.node("MultiHeadAttention", names(node, onnx), node.outputs, { num_heads: heads, unidirectional: causal ? 1 : 0 }, microsoft);
  },
  reshape: (node, onnx) => {
    const target = onnx.reshapeTarget(node.inputs[0]!.shape, node.outputs[0]!.shape);
    onnx.node("Reshape", [...names(node, onnx), target], node.outputs);
  },
  transpose: (node, onnx) => onnx.node("Transpose", names(node, onnx), node.outputs, { perm: node.attributes.permutation }),
  concat: (node, onnx) => onnx.node("Concat", names(node, onnx), node.outputs, { axis: node.attributes.axis }),
  split: (node, onnx) => {
    const { axis, parts } = node.attributes;
    onnx.node("Split", names(node, onnx), node.outputs, { axis, num_outputs: parts });
  },
  resizeNearest: (node, onnx) => {
    const attributes = { mode: "nearest", coordinate_transformation_mode: "asymmetric", nearest_mode: "floor" };
    onnx.node("Resize", [...names(node, onnx), "", "", onnx.dims(node.outputs[0]!.shape)], node.outputs, attributes);
  },
  halve: (node, onnx) => onnx.node("AveragePool", names(node, onnx), node.outputs, { kernel_shape: [2, 2], strides: [2, 2], ceil_mode: 1 }),
  spatialMean: (node, onnx) => onnx.node("GlobalAveragePool", names(node, onnx), node.outputs),
  subtract: (node, onnx) => elementwise("Sub", node, onnx),
  scale: emitScale,
  reciprocal: (node, onnx) => elementwise("Reciprocal", node, onnx),
  sqrt: (node, onnx) => elementwise("Sqrt", node, onnx),
  exp: (node, onnx) => elementwise("Exp", node, onnx),
  erf: (node, onnx) => elementwise("Erf", node, onnx),
  step: (node, onnx) => {
    const { shape } = node.outputs[0]!;
    const above = onnx.temporary("Sub", [...names(node, onnx), onnx.floats([node.attributes.threshold], [])], shape);
    onnx.node("Relu", [onnx.temporary("Sign", [above], shape)], node.outputs);
  },
  matmul: (node, onnx) => {
    const { transposeA, transposeB, scale } = node.attributes;
    const attributes = { transA: transposeA ? 1 : 0, transB: transposeB ? 1 : 0, alpha: { float: scale } };
    onnx.node("FusedMatMul", names(node, onnx), node.outputs, attributes, microsoft);
  },
  softmax: (node, onnx) => onnx.node("Softmax", names(node, onnx), node.outputs, { axis: -1 }),
  maskFuture: (node, onnx) => {
    const shape = node.outputs[0]!.shape.slice(-2);
    // Finite, so that no difference of two of them is NaN.
    const all = onnx.temporary("Expand", [onnx.floats([-1e30], []), onnx.dims(shape)], shape);
    const mask = onnx.temporary("Trilu", [all, onnx.int(node.attributes.offset + 1)], shape, { upper: 1 });
    onnx.node("Add", [...names(node, onnx), mask], node.outputs);
  },
  reduceSum: (node, onnx) => onnx.node("ReduceSum", [...names(node, onnx), onnx.ints(node.attributes.axes)], node.outputs, { keepdims: 1 }),
  expand: (node, onnx) => onnx.node("Expand", [...names(node, onnx), onnx.dims(node.outputs[0]!.shape)], node.outputs),
  slice: (node, onnx) => {
    const { axis, start, end } = node.attributes;
    onnx.node("Slice", [...names(node, onnx), onnx.ints([start]), onnx.ints([end]), onnx.ints([axis])], node.outputs);
  },
  pad: (node, onnx) => {
    const { axis, before, after } = node.attributes;
    onnx.node("Pad", [...names(node, onnx), onnx.ints([before, after]), "", onnx.ints([axis])], node.outputs);
  },
  after: emitAfter,
  moments: emitMoments,
  convInputGradient: emitConvInputGradient,
  convWeightGradient: emitConvWeightGradient,
};

export const cpuEmitter: Emitter = {
  rules,
  ops: new Set([
    ...Object.values(activations),
    ...convolutionOps,
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Erf",
    "Exp",
    "Expand",
    "Gemm",
    "GlobalAveragePool",
    "Identity",
    "If",
    "InstanceNormalization",
    "LayerNormalization",
    "Mul",
    "Pad",
    "Reciprocal",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Sign",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Sub",
    "Transpose",
    "Trilu",
    `${microsoft}:FusedMatMul`,
    `${microsoft}:Gelu`,
    `${microsoft}:MultiHeadAttention`,
    `${microsoft}:QuickGelu`,
  ]),
};

type AnyNode = Pick<NodeOf<"add">, "inputs" | "outputs">;

function names(node: AnyNode, onnx: OnnxBuilder): string[] {
  return node.inputs.map(input => onnx.name(input));
}

function elementwise(op: string, node: AnyNode, onnx: OnnxBuilder): void {
  onnx.node(op, names(node, onnx), node.outputs);
}

function emitLinear(node: NodeOf<"linear">, onnx: OnnxBuilder): void {
  const [x, weight, bias] = names(node, onnx);
  const [input, out] = [node.inputs[0]!, node.outputs[0]!];
  affine(onnx, { name: x!, shape: input.shape }, weight!, bias ?? null, out.shape, (op, inputs, attributes, domain) => {
    onnx.node(op, inputs, [out], attributes, domain);
    return onnx.name(out);
  });
}

interface Operand {
  name: string;
  shape: Shape;
}
/** Adds the node that makes a result, under the result's own name or a temporary one. */
type Finish = (op: string, inputs: readonly string[], attributes?: Readonly<Record<string, AttributeValue>>, domain?: string) => string;

/**
 * x times weight [out, in] transposed, plus bias. Gemm adds the bias itself but wants a matrix; FusedMatMul takes any rank.
 * Neither needs a transposed copy of the weight.
 */
function affine(onnx: OnnxBuilder, x: Operand, weight: string, bias: string | null, out: Shape, finish: Finish): string {
  if (bias === null) return finish("FusedMatMul", [x.name, weight], { transB: 1 }, microsoft);
  if (out.length === 2) return finish("Gemm", [x.name, weight, bias], { transB: 1 });
  const rows = product(out.slice(0, -1));
  const [depth, width] = [x.shape.at(-1) as number, out.at(-1) as number];
  const flat = onnx.temporary("Reshape", [x.name, onnx.ints([-1, depth])], [rows, depth]);
  const result = onnx.temporary("Gemm", [flat, weight, bias], [rows, width], { transB: 1 });
  return finish("Reshape", [result, onnx.dims(out)]);
}

/**
 * Two ways, chosen at each run, or here where the count of rows is known. With many rows the product up * down, added to the weight, costs less than what a pair adds
 * to every row, whatever its rank; with few rows the pair is applied to them beside the weight, which stays packed.
 */
function emitLowRankLinear(node: NodeOf<"lowRankLinear">, onnx: OnnxBuilder): void {
  const [input, weight, down, up] = node.inputs as [Value, Value, Value, Value];
  const out = node.outputs[0]!;
  const bias = node.inputs[4] ? onnx.name(node.inputs[4]) : null;
  const [width, depth] = weight.shape as [number, number];
  const rank = down.shape.at(-2)!;
  const items = node.attributes.perItem ? [input.shape[0]!] : [];
  const rows = product(input.shape.slice(items.length, -1));
  // A matrix, or one per item. Reshaped outside of the branches: as a branch's result a reshape would be a copy.
  const x: Operand = { name: onnx.name(input), shape: [...items, rows, depth] };
  if (input.shape.length !== x.shape.length)
    x.name = onnx.temporary("Reshape", [x.name, onnx.reshapeTarget(input.shape, x.shape)], x.shape);
  const flat: Shape = [...items, rows, width];
  const add: Finish = (op, inputs, attributes, domain) => onnx.temporary(op, inputs, flat, attributes, domain);
  const merged = (): string => {
    const change = onnx.temporary("FusedMatMul", [onnx.name(up), onnx.name(down)], [...items, width, depth], {}, microsoft);
    const sum = onnx.temporary("Add", [change, onnx.name(weight)], [...items, width, depth]);
    if (items.length === 0 || bias === null) return affine(onnx, x, sum, bias, flat, add);
    return add("Add", [affine(onnx, x, sum, null, flat, add), bias]);
  };
  const beside = (): string => {
    const inner = onnx.temporary("FusedMatMul", [x.name, onnx.name(down)], [...items, rows, rank], { transB: 1 }, microsoft);
    const change = add("FusedMatMul", [inner, onnx.name(up)], { transB: 1 }, microsoft);
    return add("Add", [affine(onnx, x, onnx.name(weight), bias, flat, add), change]);
  };
  const choice =
    typeof rows === "number"
      ? (rows >= depth ? merged : beside)()
      : onnx.choose(onnx.isAtLeast(rows, depth), flat, { whenTrue: merged, whenFalse: beside });
  onnx.node("Reshape", [choice, onnx.reshapeTarget(flat, out.shape)], node.outputs);
}

/** InstanceNormalization over the groups (a shade quicker than LayerNormalization here), then scale and shift per channel. */
function emitGroupNorm(node: NodeOf<"groupNorm">, onnx: OnnxBuilder): void {
  const { groups, epsilon } = node.attributes;
  const [input, gamma, beta] = [node.inputs[0]!, node.inputs[1]!, node.inputs[2]!];
  const channels = gamma.shape[0] as number;
  const rows: Shape = [input.shape[0]!, groups, product([channels / groups, ...input.shape.slice(2)])];
  const grouped = onnx.temporary("Reshape", [onnx.name(input), onnx.ints([0, groups, -1])], rows);
  const ones = onnx.floats(Array(groups).fill(1));
  const zeros = onnx.floats(Array(groups).fill(0));
  const normalised = onnx.temporary("InstanceNormalization", [grouped, ones, zeros], rows, { epsilon: { float: epsilon } });
  const back = onnx.temporary("Reshape", [normalised, onnx.reshapeTarget(rows, input.shape)], input.shape);
  const scaled = onnx.temporary("Mul", [back, onnx.view(gamma, [channels, 1, 1])], input.shape);
  onnx.node("Add", [scaled, onnx.view(beta, [channels, 1, 1])], node.outputs);
}

function emitScale(node: NodeOf<"scale">, onnx: OnnxBuilder): void {
  const { factor, shift } = node.attributes;
  const out = node.outputs[0]!;
  const x = onnx.name(node.inputs[0]!);
  const [byFactor, toShift] = [onnx.floats([factor], []), onnx.floats([shift], [])];
  if (shift === 0) onnx.node("Mul", [x, byFactor], [out]);
  else onnx.node("Add", [factor === 1 ? x : onnx.temporary("Mul", [x, byFactor], out.shape), toShift], [out]);
}

/** Adds 0 times an element of each of the others: an order that no optimiser can undo. */
function emitAfter(node: NodeOf<"after">, onnx: OnnxBuilder): void {
  const [x, ...others] = node.inputs as [Value, ...Value[]];
  const elements = others.map(other => {
    const ones = other.shape.map(() => 1);
    const [starts, ends, axes] = [ones.map(() => 0), ones, ones.map((_, axis) => axis)].map(values => onnx.ints(values));
    const first = onnx.temporary("Slice", [onnx.name(other), starts!, ends!, axes!], ones);
    return onnx.temporary("Reshape", [first, onnx.ints([1])], [1]);
  });
  const sum = elements.reduce((a, b) => onnx.temporary("Add", [a, b], [1]));
  const nothing = onnx.temporary("Mul", [sum, onnx.floats([0], [])], [1]);
  onnx.node("Add", [onnx.name(x), nothing], node.outputs);
}

function emitMoments(node: NodeOf<"moments">, onnx: OnnxBuilder): void {
  const [x, mean, inverse] = [node.inputs[0]!, node.outputs[0]!, node.outputs[1]!];
  const last = onnx.ints([-1]);
  onnx.node("ReduceMean", [onnx.name(x), last], [mean], { keepdims: 1 });
  const centred = onnx.temporary("Sub", [onnx.name(x), onnx.name(mean)], x.shape);
  const squares = onnx.temporary("Mul", [centred, centred], x.shape);
  const variance = onnx.temporary("ReduceMean", [squares, last], mean.shape, { keepdims: 1 });
  const shifted = onnx.temporary("Add", [variance, onnx.floats([node.attributes.epsilon], [])], mean.shape);
  onnx.node("Reciprocal", [onnx.temporary("Sqrt", [shifted], mean.shape)], [inverse]);
}
