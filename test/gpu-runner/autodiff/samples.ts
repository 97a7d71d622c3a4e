/** Every op over random shapes and attributes, as fast-check draws them. */
import * as fc from "fast-check";
import type { Value } from "../../../gpu-runner/graph/ir.ts";
import type { OpName } from "../../../gpu-runner/graph/ops.ts";
import * as ops from "../../../gpu-runner/graph/ops.ts";

export interface Sample {
  inputs: Record<string, readonly number[]>;
  build(values: Record<string, Value>): Value | readonly Value[];
  /** Where a derivative jumps; no element lies near. */
  kinks?: readonly number[];
  /** Elements are above zero, for roots and reciprocals. */
  positive?: boolean;
}

const size = fc.integer({ min: 1, max: 4 });
const shape = fc.array(size, { minLength: 2, maxLength: 4 });
const image = fc.tuple(size, size, fc.integer({ min: 2, max: 5 }), fc.integer({ min: 2, max: 5 }));

function pointwise(apply: (x: Value) => Value, rest: Pick<Sample, "kinks" | "positive"> = {}): fc.Arbitrary<Sample> {
  return shape.map(x => ({ inputs: { x }, build: ({ x }) => apply(x!), ...rest }));
}

/** A shape, and one that broadcasts with it: some dims 1, some at the front left out. */
function broadcasting(apply: (a: Value, b: Value) => Value): fc.Arbitrary<Sample> {
  return fc
    .tuple(shape, fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }), fc.integer({ min: 0, max: 3 }), fc.boolean())
    .map(([a, ones, dropped, swapped]) => {
      const b = a.map((dim, i) => (ones[i] ? 1 : dim)).slice(Math.min(dropped, a.length - 1));
      return { inputs: swapped ? { a: b, b: a } : { a, b }, build: ({ a, b }) => apply(a!, b!) };
    });
}

const convolution = fc.record({
  batch: size,
  channels: size,
  filters: size,
  kernel: fc.constantFrom(1, 2, 3),
  height: fc.integer({ min: 3, max: 6 }),
  width: fc.integer({ min: 3, max: 6 }),
  stride: fc.constantFrom(1, 2),
  before: fc.constantFrom(0, 1),
  after: fc.constantFrom(0, 1),
  biased: fc.boolean(),
});
type Convolution = typeof convolution extends fc.Arbitrary<infer T> ? T : never;

function convolutionOf({ batch, channels, filters, kernel, height, width, stride, before, after }: Convolution) {
  // A transposed 1x1 convolution has nothing to take its padding from.
  const pads = kernel === 1 ? { top: 0, left: 0, bottom: 0, right: 0 } : { top: before, left: before, bottom: after, right: after };
  const extent = (length: number): number => Math.floor((length + pads.top + pads.bottom - kernel) / stride) + 1;
  return {
    x: [batch, channels, height, width],
    weight: [filters, channels, kernel, kernel],
    result: [batch, filters, extent(height), extent(width)],
    options: { stride, pads },
  };
}

function biasOf(biased: boolean, length: number): Record<string, readonly number[]> {
  return biased ? { bias: [length] } : {};
}

const matrices = fc.record({
  leading: fc.array(size, { maxLength: 2 }),
  dropped: fc.boolean(),
  rows: size,
  depth: size,
  columns: size,
  transposeA: fc.boolean(),
  transposeB: fc.boolean(),
  scale: fc.constantFrom(1, 0.5, -2),
});

const layer = fc.record({ leading: fc.array(size, { minLength: 1, maxLength: 3 }), width: size, out: size, biased: fc.boolean() });

export const samples = {
  add: broadcasting(ops.add),
  subtract: broadcasting(ops.subtract),
  multiply: broadcasting(ops.multiply),
  relu: pointwise(ops.relu, { kinks: [0] }),
  silu: pointwise(ops.silu),
  gelu: pointwise(ops.gelu),
  quickGelu: pointwise(ops.quickGelu),
  activate: fc
    .tuple(fc.constantFrom(...ops.activationKinds), shape)
    .map(([kind, x]) => ({ inputs: { x }, build: ({ x }) => ops.activate(x!, kind), kinks: [0, -3, 3] })),
  clamp: pointwise(x => ops.clamp(x, -0.5, 0.75), { kinks: [-0.5, 0.75] }),
  scale: pointwise(x => ops.scale(x, -1.5, 0.25)),
  reciprocal: pointwise(ops.reciprocal, { positive: true }),
  sqrt: pointwise(ops.sqrt, { positive: true }),
  exp: pointwise(ops.exp),
  erf: pointwise(ops.erf),
  step: pointwise(x => ops.multiply(ops.step(x, 0.25), x), { kinks: [0.25] }),
  conv2d: convolution.map(drawn => {
    const { x, weight, options } = convolutionOf(drawn);
    return {
      inputs: { x, weight, ...biasOf(drawn.biased, drawn.filters) },
      build: ({ x, weight, bias }) => ops.conv2d(x!, weight!, bias ?? null, options),
    };
  }),
  convInputGradient: convolution.map(drawn => {
    const { x, weight, result, options } = convolutionOf(drawn);
    const size = { height: x[2]!, width: x[3]! };
    return { inputs: { result, weight }, build: ({ result, weight }) => ops.convInputGradient(result!, weight!, { ...options, ...size }) };
  }),
  convWeightGradient: convolution.map(drawn => {
    const { x, weight, result, options } = convolutionOf(drawn);
    const kernel = weight.slice(2);
    return { inputs: { x, result }, build: ({ x, result }) => ops.convWeightGradient(x!, result!, { ...options, kernel }) };
  }),
  linear: layer.map(({ leading, width, out, biased }) => ({
    inputs: { x: [...leading, width], weight: [out, width], ...biasOf(biased, out) },
    build: ({ x, weight, bias }) => ops.linear(x!, weight!, bias ?? null),
  })),
  lowRankLinear: fc.tuple(layer, size, fc.boolean()).map(([{ leading, width, out, biased }, rank, drawn]) => {
    const perItem = drawn && leading.length > 1;
    const items = perItem ? [leading[0]!] : [];
    return {
      inputs: {
        x: [...leading, width],
        weight: [out, width],
        down: [...items, rank, width],
        up: [...items, out, rank],
        ...biasOf(biased, out),
      },
      build: ({ x, weight, down, up, bias }) => ops.lowRankLinear(x!, weight!, bias ?? null, { down: down!, up: up! }),
    };
  }),
  matmul: matrices.map(({ leading, dropped, rows, depth, columns, ...options }) => ({
    inputs: {
      a: [...leading, ...(options.transposeA ? [depth, rows] : [rows, depth])],
      b: [...(dropped ? [] : leading), ...(options.transposeB ? [columns, depth] : [depth, columns])],
    },
    build: ({ a, b }) => ops.matmul(a!, b!, options),
  })),
  softmax: pointwise(ops.softmax),
  // Masked scores stand for minus infinity: only what softmax leaves of them is a number to compare.
  maskFuture: fc.tuple(size, size, size, fc.integer({ min: 0, max: 2 })).map(([batch, queries, keys, offset]) => ({
    inputs: { x: [batch, queries, keys] },
    build: ({ x }) => ops.softmax(ops.maskFuture(x!, offset)),
  })),
  groupNorm: fc
    .tuple(size, fc.constantFrom(1, 2, 3), fc.constantFrom(1, 2), fc.integer({ min: 2, max: 4 }), size)
    .map(([batch, groups, perGroup, height, width]) => ({
      inputs: { x: [batch, groups * perGroup, height, width], weight: [groups * perGroup], bias: [groups * perGroup] },
      build: ({ x, weight, bias }) => ops.groupNorm(x!, weight!, bias!, { groups, epsilon: 1e-2 }),
    })),
  layerNorm: fc.tuple(fc.array(size, { minLength: 1, maxLength: 3 }), fc.integer({ min: 2, max: 6 })).map(([leading, width]) => ({
    inputs: { x: [...leading, width], weight: [width], bias: [width] },
    build: ({ x, weight, bias }) => ops.layerNorm(x!, weight!, bias!, { epsilon: 1e-2 }),
  })),
  moments: fc.tuple(fc.array(size, { minLength: 1, maxLength: 3 }), fc.integer({ min: 2, max: 6 })).map(([leading, width]) => ({
    inputs: { x: [...leading, width] },
    build: ({ x }) => Object.values(ops.moments(x!, 1e-2)),
  })),
  attention: fc.tuple(size, size, size, fc.constantFrom(1, 2), size, fc.boolean()).map(([batch, queries, keys, heads, width, causal]) => {
    const [query, key] = [
      [batch, queries, heads * width],
      [batch, causal ? queries : keys, heads * width],
    ];
    return {
      inputs: { query, key, value: key },
      build: ({ query, key, value }) => ops.attention(query!, key!, value!, { heads, causal }),
    };
  }),
  reshape: shape.map(x => ({
    inputs: { x },
    build: ({ x }) => ops.reshape(x!, [x!.shape.reduce<number>((n, dim) => n * Number(dim), 1), 1]),
  })),
  transpose: shape
    .chain(x => fc.tuple(fc.constant(x), fc.shuffledSubarray([...x.keys()], { minLength: x.length })))
    .map(([x, permutation]) => ({ inputs: { x }, build: ({ x }) => ops.transpose(x!, permutation) })),
  concat: fc.tuple(shape, fc.array(size, { minLength: 1, maxLength: 3 }), fc.nat()).map(([first, sizes, drawn]) => {
    const axis = drawn % first.length;
    const inputs = Object.fromEntries(sizes.map((dim, i) => [`x${i}`, first.with(axis, dim)]));
    return { inputs, build: values => ops.concat(Object.values(values), axis) };
  }),
  split: fc.tuple(shape, fc.integer({ min: 1, max: 3 }), fc.nat()).map(([first, parts, drawn]) => {
    const axis = drawn % first.length;
    return { inputs: { x: first.with(axis, first[axis]! * parts) }, build: ({ x }) => ops.split(x!, axis, parts) };
  }),
  slice: fc
    .tuple(shape, fc.integer({ min: 0, max: 2 }), size, fc.integer({ min: 0, max: 2 }), fc.nat())
    .map(([first, before, length, after, drawn]) => {
      const axis = drawn % first.length;
      const x = first.with(axis, before + length + after);
      return { inputs: { x }, build: ({ x }) => ops.slice(x!, axis, before, before + length) };
    }),
  pad: fc.tuple(shape, fc.integer({ min: 0, max: 2 }), fc.integer({ min: 0, max: 2 }), fc.nat()).map(([x, before, after, drawn]) => ({
    inputs: { x },
    build: ({ x }) => ops.pad(x!, drawn % x!.shape.length, before, after),
  })),
  reduceSum: fc.tuple(shape, fc.array(fc.boolean(), { minLength: 4, maxLength: 4 })).map(([x, summed]) => ({
    inputs: { x },
    build: ({ x }) =>
      ops.reduceSum(
        x!,
        [...x!.shape.keys()].filter(axis => axis === 0 || summed[axis]),
      ),
  })),
  after: shape.map(x => ({ inputs: { x, y: [2, 3] }, build: ({ x, y }) => ops.after(x!, [y!]) })),
  expand: fc.tuple(shape, fc.array(fc.boolean(), { minLength: 4, maxLength: 4 })).map(([reached, ones]) => ({
    inputs: { x: reached.map((dim, i) => (ones[i] ? 1 : dim)) },
    build: ({ x }) => ops.expand(x!, reached),
  })),
  resizeNearest: fc.tuple(image, fc.nat(4), fc.nat(4)).map(([x, above, beside]) => ({
    inputs: { x },
    build: ({ x }) => ops.resizeNearest(x!, Number(x!.shape[2]) + above, Number(x!.shape[3]) + beside),
  })),
  halve: image.map(x => ({ inputs: { x }, build: ({ x }) => ops.halve(x!) })),
  spatialMean: image.map(x => ({ inputs: { x }, build: ({ x }) => ops.spatialMean(x!) })),
} satisfies Record<OpName, fc.Arbitrary<Sample>>;
