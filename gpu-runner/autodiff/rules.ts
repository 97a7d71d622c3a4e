/**
 * The gradient of every op: one row an op, exhaustive by type. In the formulas y is the op's result, dy the gradient in it, and
 * <.> sums. A rule gives one thunk per input of its node, called only where that input's gradient is wanted.
 */
import { equalShapes, type Shape } from "../graph/dims.ts";
import type { NodeOf, Value } from "../graph/ir.ts";
import type { OpName } from "../graph/ops.ts";
import * as ops from "../graph/ops.ts";
import { activationSlopes } from "./activation-slopes.ts";
import { attentionGradients } from "./attention.ts";
import { groupNormGradients, layerNormGradients } from "./norms.ts";
import { resizeNearestGradient } from "./resize.ts";
import { once, type Thunk } from "./thunk.ts";

/** `wanted` tells of each input whether its thunk will be called. `gradients` has one for each output, null where nothing asked depends on that; of a node with one output it is `gradient`. */
export type Rule<K extends OpName> = (
  node: NodeOf<K>,
  gradient: Value,
  gradients: readonly (Value | null)[],
  wanted: readonly boolean[],
) => readonly Thunk[];

/** The thunks of a node's inputs. */
export function gradientThunks(node: NodeOf<OpName>, gradients: readonly (Value | null)[], wanted: readonly boolean[]): readonly Thunk[] {
  // The table's mapped type and the node's correspond by `op`, which the compiler cannot follow through an index.
  const rule = rules[node.op] as Rule<OpName>;
  return rule(node, gradients.find(gradient => gradient !== null)!, gradients, wanted);
}

/** The sum of a gradient over the axes along which a value of this shape was broadcast. */
function sumTo(gradient: Value, shape: Shape): Value {
  if (equalShapes(gradient.shape, shape)) return gradient;
  const added = gradient.shape.length - shape.length;
  const axes = gradient.shape.flatMap((dim, axis) => (axis < added || (shape[axis - added] === 1 && dim !== 1) ? [axis] : []));
  const sum = axes.length === 0 ? gradient : ops.reduceSum(gradient, axes);
  return equalShapes(sum.shape, shape) ? sum : ops.reshape(sum, shape);
}

/** [..., n] as [rows, n]. */
function rowsOf(x: Value): Value {
  if (x.shape.length === 2) return x;
  const width = x.shape.at(-1) as number;
  return ops.reshape(x, [elements(x.shape) / width, width]);
}

function elements(shape: Shape): number {
  return (shape as number[]).reduce((a, b) => a * b, 1);
}

/** dx = dy * slope(x, y). */
function pointwise<K extends OpName>(slope: (x: Value, y: Value, node: NodeOf<K>) => Value): Rule<K> {
  return (node, gradient) => [() => ops.multiply(gradient, slope(node.inputs[0]!, node.outputs[0]!, node))];
}

const rules: { readonly [K in OpName]: Rule<K> } = {
  // da = dy, db = dy, each summed over what was broadcast.
  add: ({ inputs: [a, b] }, gradient) => [() => sumTo(gradient, a!.shape), () => sumTo(gradient, b!.shape)],
  // da = dy * b, db = dy * a.
  multiply: ({ inputs: [a, b] }, gradient) => [
    () => sumTo(ops.multiply(gradient, b!), a!.shape),
    () => sumTo(ops.multiply(gradient, a!), b!.shape),
  ],
  // da = dy, db = -dy.
  subtract: ({ inputs: [a, b] }, gradient) => [() => sumTo(gradient, a!.shape), () => ops.scale(sumTo(gradient, b!.shape), -1)],
  // dx = dy where y > 0.
  relu: pointwise((_, y) => ops.step(y, 0)),
  // With s = sigmoid(x): dx = dy * s (1 + x (1 - s)).
  silu: pointwise(x => swishSlope(x, 1)),
  // With s = sigmoid(1.702 x): dx = dy * s (1 + 1.702 x (1 - s)).
  quickGelu: pointwise(x => swishSlope(x, 1.702)),
  // dx = dy * (Phi(x) + x phi(x)), of the normal distribution and its density.
  gelu: pointwise(x => {
    const below = ops.scale(ops.erf(ops.scale(x, Math.SQRT1_2)), 0.5, 0.5);
    const density = ops.scale(ops.exp(ops.scale(ops.multiply(x, x), -0.5)), 1 / Math.sqrt(2 * Math.PI));
    return ops.add(below, ops.multiply(x, density));
  }),
  activate: pointwise((x, y, { attributes }) => activationSlopes[attributes.kind](x, y)),
  // dx = dy where minimum < x <= maximum.
  clamp: pointwise((x, _, { attributes: { minimum, maximum } }) => ops.subtract(ops.step(x, minimum), ops.step(x, maximum))),
  // dx = factor dy.
  scale: ({ attributes }, gradient) => [() => ops.scale(gradient, attributes.factor)],
  // dx = -dy * y^2.
  reciprocal: pointwise((_, y) => ops.scale(ops.multiply(y, y), -1)),
  // dx = dy / (2 y).
  sqrt: pointwise((_, y) => ops.scale(ops.reciprocal(y), 0.5)),
  // dx = dy * y.
  exp: pointwise((_, y) => y),
  // dx = dy * 2 / sqrt(pi) * exp(-x^2).
  erf: pointwise(x => ops.scale(ops.exp(ops.scale(ops.multiply(x, x), -1)), 2 / Math.sqrt(Math.PI))),
  // Constant but for the threshold, where it has no slope.
  step: () => [() => null],

  // The adjoint maps of the convolution, which is linear in x and in the weight; the bias: dy over items and pixels.
  conv2d: ({ inputs: [x, weight, bias], attributes }, gradient) => [
    () => {
      const [height, width] = x!.shape.slice(2) as [number, number];
      return ops.convInputGradient(gradient, weight!, { ...attributes, height, width });
    },
    () => ops.convWeightGradient(x!, gradient, { ...attributes, kernel: weight!.shape.slice(2) as number[] }),
    () => ops.reshape(ops.reduceSum(gradient, [0, 2, 3]), bias!.shape),
  ],
  // g -> <dy, adjoint(g)>: as an adjoint of the convolution its own adjoint is the convolution.
  convInputGradient: ({ inputs: [y, weight], attributes }, gradient) => [
    () => ops.conv2d(gradient, weight!, null, attributes),
    () => ops.convWeightGradient(gradient, y!, { ...attributes, kernel: weight!.shape.slice(2) as number[] }),
  ],
  convWeightGradient: ({ inputs: [x, y], attributes }, gradient) => [
    () => {
      const [height, width] = x!.shape.slice(2) as [number, number];
      return ops.convInputGradient(y!, gradient, { ...attributes, height, width });
    },
    () => ops.conv2d(x!, gradient, null, attributes),
  ],
  // dx = dy W, dW = dy^T x, db = dy, the last two over all rows.
  linear: ({ inputs: [x, weight, bias] }, gradient) => [
    () => ops.matmul(gradient, weight!),
    () => ops.matmul(rowsOf(gradient), rowsOf(x!), { transposeA: true }),
    () => sumTo(gradient, bias!.shape),
  ],
  lowRankLinear: lowRankGradients,
  // With op(A), op(B) as stored or transposed: dop(A) = dy op(B)^T, dop(B) = op(A)^T dy.
  matmul: ({ inputs: [a, b], attributes: { transposeA, transposeB, scale } }, dy) => [
    () => {
      const gradient = transposeA
        ? ops.matmul(b!, dy, { transposeA: transposeB, transposeB: true, scale })
        : ops.matmul(dy, b!, { transposeB: !transposeB, scale });
      return sumTo(gradient, a!.shape);
    },
    () => {
      const gradient = transposeB
        ? ops.matmul(dy, a!, { transposeA: true, transposeB: transposeA, scale })
        : ops.matmul(a!, dy, { transposeA: !transposeA, scale });
      return sumTo(gradient, b!.shape);
    },
  ],
  groupNorm: groupNormGradients,
  layerNorm: layerNormGradients,
  // With r = 1 / deviation and n elements: dx = dmean / n - dr * r^3 (x - mean) / n.
  moments: ({ inputs: [x], outputs: [mean, r] }, _, [dMean, dR]) => [
    () => {
      const count = x!.shape.at(-1) as number;
      const parts: Value[] = [];
      if (dMean) parts.push(ops.expand(ops.scale(dMean, 1 / count), x!.shape));
      if (dR) {
        const slope = ops.scale(ops.multiply(dR, ops.multiply(r!, ops.multiply(r!, r!))), -1 / count);
        parts.push(ops.multiply(ops.subtract(x!, mean!), slope));
      }
      return parts.reduce(ops.add);
    },
  ],
  attention: attentionGradients,
  // dx = y (dy - <dy, y>).
  softmax: ({ inputs: [x], outputs: [y] }, gradient) => [
    () => ops.multiply(y!, ops.subtract(gradient, ops.reduceSum(ops.multiply(gradient, y!), [x!.shape.length - 1]))),
  ],
  // What is masked is a constant to the softmax that follows, whose own gradient is 0 there.
  maskFuture: (_, gradient) => [() => gradient],

  reshape: ({ inputs: [x] }, gradient) => [() => ops.reshape(gradient, x!.shape)],
  transpose: ({ attributes: { permutation } }, gradient) => [
    () =>
      ops.transpose(
        gradient,
        permutation.map((_, axis) => permutation.indexOf(axis)),
      ),
  ],
  // Each value takes its part of dy.
  concat: ({ inputs, attributes: { axis } }, gradient) => {
    let end = 0;
    return inputs.map(({ shape }) => {
      const start = end;
      end += shape[axis] as number;
      const stop = end;
      return () => ops.slice(gradient, axis, start, stop);
    });
  },
  // The parts' gradients side by side, zeros for a part that nothing depends on.
  split: ({ outputs, attributes: { axis } }, _, gradients) => [
    () =>
      ops.concat(
        gradients.map((gradient, i) => gradient ?? ops.scale(outputs[i]!, 0)),
        axis,
      ),
  ],
  slice: ({ inputs: [x], attributes: { axis, start, end } }, gradient) => [
    () => ops.pad(gradient, axis, start, (x!.shape[axis] as number) - end),
  ],
  pad: ({ inputs: [x], attributes: { axis, before } }, gradient) => [
    () => ops.slice(gradient, axis, before, before + (x!.shape[axis] as number)),
  ],
  // dx = dy; of the others nothing but their being there counts.
  after: ({ inputs }, gradient) => inputs.map((_, i) => () => (i === 0 ? gradient : null)),
  // dx = dy, repeated along the sums.
  reduceSum: ({ inputs: [x] }, gradient) => [() => ops.expand(gradient, x!.shape)],
  // dx = dy, summed over the repetitions.
  expand: ({ inputs: [x] }, gradient) => [() => sumTo(gradient, x!.shape)],
  // Each pixel takes the sum over those that were copied from it.
  resizeNearest: ({ inputs: [x] }, gradient) => [() => resizeNearestGradient(gradient, x!.shape as number[])],
  // Each pixel takes dy over the count of pixels of its square.
  halve: ({ inputs: [x] }, gradient) => [() => halveGradient(gradient, x!.shape as number[])],
  // dx = dy / (H W) at every pixel.
  spatialMean: ({ inputs: [x] }, gradient) => [() => ops.expand(ops.scale(gradient, 1 / elements(x!.shape.slice(2))), x!.shape)],
};

/** The slope of x sigmoid(a x): with s = sigmoid(a x), s (1 + a x (1 - s)). */
function swishSlope(x: Value, a: number): Value {
  const scaled = a === 1 ? x : ops.scale(x, a);
  const s = ops.activate(scaled, "sigmoid");
  return ops.multiply(s, ops.scale(ops.multiply(scaled, ops.scale(s, -1, 1)), 1, 1));
}

/**
 * y = x W^T + (x D^T) U^T + b. With h = x D^T and e = dy U: dx = dy W + e D, dD = e^T x, dU = dy^T h; the weight's own gradient
 * dy^T x is built only where it is wanted. dx waits for dD and dU: ONNX Runtime would run on along the dx of all layers first, with
 * every x and dy kept for the pairs' gradients at the end.
 */
function lowRankGradients(
  { inputs, attributes: { perItem } }: NodeOf<"lowRankLinear">,
  gradient: Value,
  _: readonly (Value | null)[],
  wanted: readonly boolean[],
): readonly Thunk[] {
  const [x, weight, down, up, bias] = inputs as [Value, Value, Value, Value, Value | undefined];
  // A matrix, or one per item, as the pair is.
  const matrices = (value: Value): Value => {
    const [batch, width] = [value.shape[0] as number, value.shape.at(-1) as number];
    if (!perItem) return rowsOf(value);
    return value.shape.length === 3 ? value : ops.reshape(value, [batch, elements(value.shape) / batch / width, width]);
  };
  const [rows, dy] = [once(() => matrices(x)), once(() => matrices(gradient))];
  const inner = once(() => ops.matmul(dy(), up));
  const dDown = once(() => ops.matmul(inner(), rows(), { transposeA: true }));
  const dUp = once(() => ops.matmul(dy(), ops.matmul(rows(), down, { transposeB: true }), { transposeA: true }));
  return [
    () => {
      const ready = ops.after(inner(), [...(wanted[2] ? [dDown()] : []), ...(wanted[3] ? [dUp()] : [])]);
      return ops.reshape(ops.add(ops.matmul(dy(), weight), ops.matmul(ready, down)), x.shape);
    },
    () => ops.matmul(rowsOf(gradient), rowsOf(x), { transposeA: true }),
    dDown,
    dUp,
    () => sumTo(gradient, bias!.shape),
  ];
}

function halveGradient(gradient: Value, [, , height, width]: readonly number[]): Value {
  let quarter = ops.scale(gradient, 0.25);
  for (const [axis, size] of [height!, width!].map((size, i) => [i + 2, size] as const)) {
    if (size % 2 === 0) continue;
    // The last row of an odd count stands for itself alone.
    const last = (size - 1) / 2;
    const edge = ops.scale(ops.slice(quarter, axis, last, last + 1), 2);
    quarter = last === 0 ? edge : ops.concat([ops.slice(quarter, axis, 0, last), edge], axis);
  }
  const [rows, columns] = gradient.shape.slice(2) as [number, number];
  const spread = ops.resizeNearest(quarter, rows * 2, columns * 2);
  const cut = height! % 2 === 0 ? spread : ops.slice(spread, 2, 0, height!);
  return width! % 2 === 0 ? cut : ops.slice(cut, 3, 0, width!);
}
