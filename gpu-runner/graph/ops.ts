/**
 * The ops: one op, one exported function, which checks its inputs, infers the shape of what it makes and appends a node.
 * `Attributes` lists every op; an emitter (and later a gradient rule) is a table over it, so that an omission does not compile.
 */
import {
  add as addDims,
  type Dim,
  dimName,
  equal,
  equalShapes,
  floorDivide,
  multiply as multiplyDims,
  product,
  type Shape,
  shapeName,
} from "./dims.ts";
import { GraphError, type Value } from "./ir.ts";

/** Zeros around height and width. */
export interface Pads {
  top: number;
  left: number;
  bottom: number;
  right: number;
}

export interface MatmulOptions {
  transposeA: boolean;
  transposeB: boolean;
  /** What the product is multiplied by. */
  scale: number;
}

/** Pointwise functions that only hypernetworks use, as PyTorch defines them with its default parameters. */
export const activationKinds = ["leakyRelu", "elu", "hardSwish", "tanh", "sigmoid", "softsign", "mish"] as const;
export type ActivationKind = (typeof activationKinds)[number];

export interface Attributes {
  add: Record<never, never>;
  multiply: Record<never, never>;
  relu: Record<never, never>;
  silu: Record<never, never>;
  gelu: Record<never, never>;
  quickGelu: Record<never, never>;
  activate: { kind: ActivationKind };
  clamp: { minimum: number; maximum: number };
  conv2d: { stride: number; pads: Pads };
  linear: Record<never, never>;
  lowRankLinear: { perItem: boolean };
  groupNorm: { groups: number; epsilon: number };
  layerNorm: { epsilon: number };
  attention: { heads: number; causal: boolean };
  reshape: Record<never, never>;
  transpose: { permutation: readonly number[] };
  concat: { axis: number };
  split: { axis: number; parts: number };
  resizeNearest: Record<never, never>;
  halve: Record<never, never>;
  spatialMean: Record<never, never>;
  subtract: Record<never, never>;
  scale: { factor: number; shift: number };
  reciprocal: Record<never, never>;
  sqrt: Record<never, never>;
  exp: Record<never, never>;
  erf: Record<never, never>;
  step: { threshold: number };
  matmul: MatmulOptions;
  softmax: Record<never, never>;
  maskFuture: { offset: number };
  reduceSum: { axes: readonly number[] };
  expand: Record<never, never>;
  slice: { axis: number; start: number; end: number };
  pad: { axis: number; before: number; after: number };
  after: Record<never, never>;
  moments: { epsilon: number };
  convInputGradient: { stride: number; pads: Pads };
  convWeightGradient: { stride: number; pads: Pads };
}
export type OpName = keyof Attributes;

/** a + b, broadcast as in NumPy. */
export function add(a: Value, b: Value): Value {
  return one("add", [a, b], {}, broadcast("add", a, b));
}

/** a * b, broadcast as in NumPy. */
export function multiply(a: Value, b: Value): Value {
  return one("multiply", [a, b], {}, broadcast("multiply", a, b));
}

/** max(x, 0). */
export function relu(x: Value): Value {
  return one("relu", [x], {}, x.shape);
}

/** x * sigmoid(x). */
export function silu(x: Value): Value {
  return one("silu", [x], {}, x.shape);
}

/** x * Phi(x), with the error function (not the tanh approximation). */
export function gelu(x: Value): Value {
  return one("gelu", [x], {}, x.shape);
}

/** x * sigmoid(1.702 x): OpenAI CLIP's activation. */
export function quickGelu(x: Value): Value {
  return one("quickGelu", [x], {}, x.shape);
}

export function activate(x: Value, kind: ActivationKind): Value {
  return one("activate", [x], { kind }, x.shape);
}

/** min(max(x, minimum), maximum). */
export function clamp(x: Value, minimum: number, maximum: number): Value {
  return one("clamp", [x], { minimum, maximum }, x.shape);
}

/** x [B, Cin, H, W] * weight [Cout, Cin, k, k], plus bias [Cout] where there is one. */
export function conv2d(x: Value, weight: Value, bias: Value | null, options: { stride: number; pads: Pads }): Value {
  const inputs = bias ? [x, weight, bias] : [x, weight];
  const [batch, channels, height, width] = axes("conv2d", inputs, x, 4);
  const [filters, depth, kernelHeight, kernelWidth] = axes("conv2d", inputs, weight, 4);
  expect("conv2d", inputs, equal(channels!, depth!), `${dimName(depth!)} input channels`, x);
  if (bias) expect("conv2d", inputs, equalShapes(bias.shape, [filters!]), `bias [${dimName(filters!)}]`, bias);
  const { top, left, bottom, right } = options.pads;
  const extent = (size: Dim, kernel: Dim, padding: number): Dim =>
    addDims(floorDivide(addDims(addDims(size, padding), multiplyDims(kernel, -1)), options.stride), 1);
  const shape = [batch!, filters!, extent(height!, kernelHeight!, top + bottom), extent(width!, kernelWidth!, left + right)];
  return one("conv2d", inputs, options, shape);
}

/** x [..., in] times weight [out, in] transposed, plus bias [out] where there is one. */
export function linear(x: Value, weight: Value, bias: Value | null): Value {
  const inputs = bias ? [x, weight, bias] : [x, weight];
  const [out, width] = axes("linear", inputs, weight, 2);
  expect("linear", inputs, x.shape.length >= 2 && equal(x.shape.at(-1)!, width!), `[..., ${dimName(width!)}]`, x);
  if (bias) expect("linear", inputs, equalShapes(bias.shape, [out!]), `bias [${dimName(out!)}]`, bias);
  return one("linear", inputs, {}, [...x.shape.slice(0, -1), out!]);
}

/**
 * `linear` with weight + up * down instead of the weight (Hu et al. 2021): down [R, in] and up [out, R], or where each item of
 * x [B, ..., in] has its own, down [B, R, in] and up [B, out, R].
 */
export function lowRankLinear(x: Value, weight: Value, bias: Value | null, pair: { down: Value; up: Value }): Value {
  const inputs = bias ? [x, weight, pair.down, pair.up, bias] : [x, weight, pair.down, pair.up];
  const [out, width] = axes("lowRankLinear", inputs, weight, 2);
  const perItem = pair.down.shape.length === 3;
  const items = perItem ? [x.shape[0]!] : [];
  const rank = pair.down.shape.at(-2)!;
  expect("lowRankLinear", inputs, x.shape.length >= 2 && equal(x.shape.at(-1)!, width!), `[..., ${dimName(width!)}]`, x);
  const expected = { down: [...items, rank, width!], up: [...items, out!, rank] };
  expect("lowRankLinear", inputs, equalShapes(pair.down.shape, expected.down), shapeName(expected.down), pair.down);
  expect("lowRankLinear", inputs, equalShapes(pair.up.shape, expected.up), shapeName(expected.up), pair.up);
  if (bias) expect("lowRankLinear", inputs, equalShapes(bias.shape, [out!]), `bias [${dimName(out!)}]`, bias);
  return one("lowRankLinear", inputs, { perItem }, [...x.shape.slice(0, -1), out!]);
}

/** Each of `groups` groups of channels of x [B, C, H, W] to mean 0 and variance 1, then a scale and shift [C] (Wu and He 2018). */
export function groupNorm(x: Value, weight: Value, bias: Value, options: { groups: number; epsilon: number }): Value {
  const inputs = [x, weight, bias];
  const [, channels] = axes("groupNorm", inputs, x, 4);
  expect(
    "groupNorm",
    inputs,
    typeof channels === "number" && channels % options.groups === 0,
    `channels that ${options.groups} divides`,
    x,
  );
  for (const value of [weight, bias]) expect("groupNorm", inputs, equalShapes(value.shape, [channels!]), `[${dimName(channels!)}]`, value);
  return one("groupNorm", inputs, options, x.shape);
}

/** The last axis to mean 0 and variance 1, then a scale and shift (Ba et al. 2016). */
export function layerNorm(x: Value, weight: Value, bias: Value, options: { epsilon: number }): Value {
  const inputs = [x, weight, bias];
  for (const value of [weight, bias])
    expect("layerNorm", inputs, equalShapes(value.shape, x.shape.slice(-1)), `[${dimName(x.shape.at(-1) ?? 0)}]`, value);
  return one("layerNorm", inputs, options, x.shape);
}

/** Softmax attention of queries [B, T, C] over keys and values [B, S, C] by heads of width C / heads, scaled by its square root. */
export function attention(query: Value, key: Value, value: Value, options: { heads: number; causal: boolean }): Value {
  const inputs = [query, key, value];
  const [batch, , width] = axes("attention", inputs, query, 3);
  const [keyBatch, , keyWidth] = axes("attention", inputs, key, 3);
  expect("attention", inputs, equal(batch!, keyBatch!) && equal(width!, keyWidth!), `[${dimName(batch!)}, S, ${dimName(width!)}]`, key);
  expect("attention", inputs, equalShapes(key.shape, value.shape), shapeName(key.shape), value);
  expect(
    "attention",
    inputs,
    typeof width === "number" && width % options.heads === 0,
    `a width that ${options.heads} heads divide`,
    query,
  );
  return one("attention", inputs, options, query.shape);
}

/** The same elements in another shape. */
export function reshape(x: Value, shape: Shape): Value {
  expect("reshape", [x], equal(product(x.shape), product(shape)), `${dimName(product(shape))} elements for ${shapeName(shape)}`, x);
  return one("reshape", [x], {}, shape);
}

/** Axis i of the result is axis permutation[i] of x. */
export function transpose(x: Value, permutation: readonly number[]): Value {
  const valid = permutation.length === x.shape.length && new Set(permutation).size === permutation.length;
  expect("transpose", [x], valid && permutation.every(axis => x.shape[axis] !== undefined), `a permutation of [${permutation}]`, x);
  return one(
    "transpose",
    [x],
    { permutation },
    permutation.map(axis => x.shape[axis]!),
  );
}

/** Values side by side along one axis; the other dims are equal. */
export function concat(values: readonly Value[], axis: number): Value {
  const first = values[0]!;
  for (const value of values) {
    const rest = (shape: Shape): Shape => shape.filter((_, i) => i !== axis);
    const matches = value.shape.length === first.shape.length && equalShapes(rest(value.shape), rest(first.shape));
    expect("concat", values, matches, `${shapeName(first.shape)} but for axis ${axis}`, value);
  }
  const total = values.map(value => value.shape[axis]!).reduce(addDims, 0);
  return one(
    "concat",
    values,
    { axis },
    first.shape.map((dim, i) => (i === axis ? total : dim)),
  );
}

/** Equal parts along one axis. */
export function split(x: Value, axis: number, parts: number): Value[] {
  const size = x.shape[axis];
  expect("split", [x], typeof size === "number" && size % parts === 0, `an axis ${axis} that ${parts} divides`, x);
  const shape = x.shape.map((dim, i) => (i === axis ? floorDivide(dim, parts) : dim));
  return x.graph.add("split", [x], { axis, parts }, Array<Shape>(parts).fill(shape));
}

/** x [B, C, h, w] to [B, C, height, width]: pixel i takes pixel floor(i * h / height), as PyTorch's "nearest". */
export function resizeNearest(x: Value, height: Dim, width: Dim): Value {
  const [batch, channels] = axes("resizeNearest", [x], x, 4);
  return one("resizeNearest", [x], {}, [batch!, channels!, height, width]);
}

/** Means over 2x2 pixels of x [B, C, H, W], to [B, C, ceil(H / 2), ceil(W / 2)]; at an odd edge over the pixels that are there. */
export function halve(x: Value): Value {
  const [batch, channels, height, width] = axes("halve", [x], x, 4);
  const half = (size: Dim): Dim => floorDivide(addDims(size, 1), 2);
  return one("halve", [x], {}, [batch!, channels!, half(height!), half(width!)]);
}

/** The mean of each channel of x [B, C, H, W], [B, C, 1, 1]. */
export function spatialMean(x: Value): Value {
  const [batch, channels] = axes("spatialMean", [x], x, 4);
  return one("spatialMean", [x], {}, [batch!, channels!, 1, 1]);
}

/** a - b, broadcast as in NumPy. */
export function subtract(a: Value, b: Value): Value {
  return one("subtract", [a, b], {}, broadcast("subtract", a, b));
}

/** factor * x + shift. */
export function scale(x: Value, factor: number, shift = 0): Value {
  return one("scale", [x], { factor, shift }, x.shape);
}

/** 1 / x. */
export function reciprocal(x: Value): Value {
  return one("reciprocal", [x], {}, x.shape);
}

export function sqrt(x: Value): Value {
  return one("sqrt", [x], {}, x.shape);
}

export function exp(x: Value): Value {
  return one("exp", [x], {}, x.shape);
}

/** The error function. */
export function erf(x: Value): Value {
  return one("erf", [x], {}, x.shape);
}

/** 1 where x > threshold, else 0. */
export function step(x: Value, threshold: number): Value {
  return one("step", [x], { threshold }, x.shape);
}

/** a [..., M, K] times b [..., K, N], either of them stored transposed, times `scale`; leading dims broadcast. */
export function matmul(a: Value, b: Value, options: Partial<MatmulOptions> = {}): Value {
  const { transposeA, transposeB, scale } = { transposeA: false, transposeB: false, scale: 1, ...options };
  for (const value of [a, b]) expect("matmul", [a, b], value.shape.length >= 2, "rank 2 or more", value);
  const [rows, depth] = matrixDims(a, transposeA);
  const [inner, columns] = matrixDims(b, transposeB);
  expect("matmul", [a, b], equal(depth, inner), `${dimName(depth)} terms of each sum`, b);
  const leading = broadcastShapes("matmul", [a, b], a.shape.slice(0, -2), b.shape.slice(0, -2));
  return one("matmul", [a, b], { transposeA, transposeB, scale }, [...leading, rows, columns]);
}

/** exp(x) over its sum along the last axis. */
export function softmax(x: Value): Value {
  return one("softmax", [x], {}, x.shape);
}

/** Scores x [..., T, S] with those of key s for query t made negligible where s > t + offset. */
export function maskFuture(x: Value, offset: number): Value {
  expect("maskFuture", [x], x.shape.length >= 2, "rank 2 or more", x);
  return one("maskFuture", [x], { offset }, x.shape);
}

/** Sums along these axes, which stay as dims of 1. */
export function reduceSum(x: Value, axes: readonly number[]): Value {
  expect(
    "reduceSum",
    [x],
    axes.every(axis => x.shape[axis] !== undefined),
    `axes [${axes}]`,
    x,
  );
  const shape = x.shape.map((dim, axis) => (axes.includes(axis) ? 1 : dim));
  return one("reduceSum", [x], { axes }, shape);
}

/** x repeated to another shape along dims of 1, as NumPy broadcasts it. */
export function expand(x: Value, shape: Shape): Value {
  const reached = broadcastShapes("expand", [x], x.shape, shape);
  expect("expand", [x], equalShapes(reached, shape), `a shape that broadcasts to ${shapeName(shape)}`, x);
  return one("expand", [x], {}, shape);
}

/** Elements start..end - 1 along one axis. */
export function slice(x: Value, axis: number, start: number, end: number): Value {
  const size = x.shape[axis];
  expect("slice", [x], typeof size === "number" && 0 <= start && start < end && end <= size, `${start}..${end} within axis ${axis}`, x);
  return one(
    "slice",
    [x],
    { axis, start, end },
    x.shape.map((dim, i) => (i === axis ? end - start : dim)),
  );
}

/** Zeros before and after along one axis. */
export function pad(x: Value, axis: number, before: number, after: number): Value {
  expect("pad", [x], x.shape[axis] !== undefined && before >= 0 && after >= 0, `an axis ${axis} and counts of zeros`, x);
  return one(
    "pad",
    [x],
    { axis, before, after },
    x.shape.map((dim, i) => (i === axis ? addDims(dim, before + after) : dim)),
  );
}

/** x itself, but not before `others` are computed: what they alone still needed is free by then. */
export function after(x: Value, others: readonly Value[]): Value {
  return others.length === 0 ? x : one("after", [x, ...others], {}, x.shape);
}

/** Mean and 1 / sqrt(variance + epsilon) along the last axis, which stays as a dim of 1. */
export function moments(x: Value, epsilon: number): { mean: Value; inverseDeviation: Value } {
  const shape = [...x.shape.slice(0, -1), 1];
  const [mean, inverseDeviation] = x.graph.add("moments", [x], { epsilon }, [shape, shape]);
  return { mean: mean!, inverseDeviation: inverseDeviation! };
}

/** Gradient of `conv2d` in its x [B, Cin, height, width], from that of its result [B, Cout, h, w] and its weight: linear in both. */
export function convInputGradient(
  gradient: Value,
  weight: Value,
  options: { stride: number; pads: Pads; height: number; width: number },
): Value {
  const inputs = [gradient, weight];
  const [batch, filters] = axes("convInputGradient", inputs, gradient, 4);
  const [depth, channels] = axes("convInputGradient", inputs, weight, 4);
  expect("convInputGradient", inputs, equal(filters!, depth!), `${dimName(depth!)} channels`, gradient);
  const { stride, pads, height, width } = options;
  return one("convInputGradient", inputs, { stride, pads }, [batch!, channels!, height, width]);
}

/** Gradient of `conv2d` in its weight [Cout, Cin, k, k], from its x and that of its result: linear in both. */
export function convWeightGradient(x: Value, gradient: Value, options: { stride: number; pads: Pads; kernel: readonly number[] }): Value {
  const inputs = [x, gradient];
  const [batch, channels] = axes("convWeightGradient", inputs, x, 4);
  const [items, filters] = axes("convWeightGradient", inputs, gradient, 4);
  expect("convWeightGradient", inputs, equal(batch!, items!), `${dimName(batch!)} items`, gradient);
  const { stride, pads, kernel } = options;
  return one("convWeightGradient", inputs, { stride, pads }, [filters!, channels!, ...kernel]);
}

function matrixDims(value: Value, transposed: boolean): [Dim, Dim] {
  const [first, second] = [value.shape.at(-2)!, value.shape.at(-1)!];
  return transposed ? [second, first] : [first, second];
}

function one<K extends OpName>(op: K, inputs: readonly Value[], attributes: Attributes[K], shape: Shape): Value {
  return inputs[0]!.graph.add(op, inputs, attributes, [shape])[0]!;
}

function axes(op: OpName, inputs: readonly Value[], value: Value, rank: number): Shape {
  expect(op, inputs, value.shape.length === rank, `rank ${rank}`, value);
  return value.shape;
}

function expect(op: OpName, inputs: readonly Value[], holds: boolean, expected: string, got: Value): void {
  if (!holds) throw new GraphError(got.graph.nameFor(op, inputs), op, expected, `${shapeName(got.shape)} of ${got.name}`);
}

function broadcast(op: OpName, a: Value, b: Value): Shape {
  return broadcastShapes(op, [a, b], a.shape, b.shape);
}

function broadcastShapes(op: OpName, inputs: readonly Value[], a: Shape, b: Shape): Shape {
  const rank = Math.max(a.length, b.length);
  const padded = (shape: Shape): Shape => [...Array<Dim>(rank - shape.length).fill(1), ...shape];
  const [left, right] = [padded(a), padded(b)];
  return left.map((dim, i) => {
    const other = right[i]!;
    expect(op, inputs, dim === 1 || other === 1 || equal(dim, other), `dims equal to ${shapeName(a)} or 1`, inputs.at(-1)!);
    return dim === 1 ? other : dim;
  });
}
