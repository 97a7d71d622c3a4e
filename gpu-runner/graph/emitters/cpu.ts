/** ONNX for the CPU provider: fp32, fused contrib ops where the CPU has them (see docs/graph.md for the measurements). */
import { product, type Shape } from "../dims.ts";
import type { EmitRules, Emitter } from "../emitter.ts";
import type { NodeOf } from "../ir.ts";
import { microsoft, type OnnxBuilder } from "../onnx.ts";

const rules: EmitRules = {
  add: (node, onnx) => elementwise("Add", node, onnx),
  multiply: (node, onnx) => elementwise("Mul", node, onnx),
  silu: (node, onnx) => onnx.node("QuickGelu", names(node, onnx), node.outputs, { alpha: { float: 1 } }, microsoft),
  gelu: (node, onnx) => onnx.node("Gelu", names(node, onnx), node.outputs, {}, microsoft),
  quickGelu: (node, onnx) => onnx.node("QuickGelu", names(node, onnx), node.outputs, { alpha: { float: 1.702 } }, microsoft),
  clamp: (node, onnx) => {
    const { minimum, maximum } = node.attributes;
    onnx.node("Clip", [...names(node, onnx), onnx.floats([minimum], []), onnx.floats([maximum], [])], node.outputs);
  },
  conv2d: (node, onnx) => {
    const { stride, pads } = node.attributes;
    const kernel = node.inputs[1]!.shape.slice(2) as number[];
    const attributes = { kernel_shape: kernel, strides: [stride, stride], pads: [pads.top, pads.left, pads.bottom, pads.right] };
    onnx.node("Conv", names(node, onnx), node.outputs, attributes);
  },
  linear: emitLinear,
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
};

export const cpuEmitter: Emitter = {
  rules,
  ops: new Set([
    "Add",
    "Clip",
    "Concat",
    "Conv",
    "Gemm",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "Mul",
    "Reshape",
    "Resize",
    "Split",
    "Transpose",
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

/** Gemm adds the bias itself but wants a matrix; FusedMatMul takes any rank. Neither needs a transposed copy of the weight. */
function emitLinear(node: NodeOf<"linear">, onnx: OnnxBuilder): void {
  const [x, weight, bias] = names(node, onnx);
  const out = node.outputs[0]!;
  if (!bias) {
    onnx.node("FusedMatMul", [x!, weight!], node.outputs, { transB: 1 }, microsoft);
  } else if (out.shape.length === 2) {
    onnx.node("Gemm", [x!, weight!, bias], node.outputs, { transB: 1 });
  } else {
    const rows = product(out.shape.slice(0, -1));
    const [width, depth] = node.inputs[1]!.shape as number[];
    const flat = onnx.temporary("Reshape", [x!, onnx.ints([-1, depth!])], [rows, depth!]);
    const result = onnx.temporary("Gemm", [flat, weight!, bias], [rows, width!], { transB: 1 });
    onnx.node("Reshape", [result, onnx.dims(out.shape)], node.outputs);
  }
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
