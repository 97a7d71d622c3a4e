/** Every op on the CPU against its definition, written out in float64. */
import { describe, expect, test } from "vitest";
import type { TensorF32 } from "../../../../gpu-runner/components.ts";
import { multiply, symbol } from "../../../../gpu-runner/graph/dims.ts";
import { emit, emitterFor, executionProviderNames, ProviderError } from "../../../../gpu-runner/graph/emitter.ts";
import { cpuEmitter } from "../../../../gpu-runner/graph/emitters/cpu.ts";
import { Graph, type Value } from "../../../../gpu-runner/graph/ir.ts";
import type { OpName } from "../../../../gpu-runner/graph/ops.ts";
import * as ops from "../../../../gpu-runner/graph/ops.ts";
import { runGraph, storeWeights, tensor, wave } from "../../support/graph.ts";

const [B, H, W, L, S] = ["B", "H", "W", "L", "S"].map(symbol);
const tokenRows = multiply(B!, L!);
const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

interface Case {
  inputs: Record<string, { shape: Parameters<Graph["input"]>[1]; tensor: TensorF32 }>;
  weights?: Record<string, TensorF32>;
  build: (values: Record<string, Value>) => Value | Value[];
  expected: TensorF32 | TensorF32[];
}

const image = wave([2, 4, 3, 5]);
const imageInput = { x: { shape: [B!, 4, H!, W!], tensor: image } };
const tokens = wave([2, 3, 4]);
const tokensInput = { x: { shape: [B!, L!, 4], tensor: tokens } };
const R = symbol("R");
const norm = { weight: wave([4], 1), bias: wave([4], 2) };

const activations: Record<ops.ActivationKind, (x: number) => number> = {
  leakyRelu: x => (x < 0 ? 0.01 * x : x),
  elu: x => (x < 0 ? Math.expm1(x) : x),
  hardSwish: x => (x * Math.min(Math.max(x + 3, 0), 6)) / 6,
  tanh: Math.tanh,
  sigmoid,
  softsign: x => x / (1 + Math.abs(x)),
  mish: x => x * Math.tanh(Math.log1p(Math.exp(x))),
};

const positive = map(tokens, x => Math.abs(x) + 0.5);
const positiveInput = { x: { shape: [B!, L!, 4], tensor: positive } };
const keys = wave([2, 5, 4], 1);
const uneven = { stride: 2, pads: { top: 0, left: 0, bottom: 1, right: 1 } };
const dot = (count: number, term: (k: number) => number): number =>
  Array.from({ length: count }, (_, k) => term(k)).reduce((a, b) => a + b);
const meanOf = (row: number): number => dot(4, k => tokens.data[row * 4 + k]!) / 4;
const unit = (shape: readonly number[], at: number): TensorF32 => tensor(shape, i => (i === at ? 1 : 0));

const cases = {
  add: {
    inputs: { ...imageInput, y: { shape: [B!, 4, 1, 1], tensor: wave([2, 4, 1, 1], 3) } },
    build: ({ x, y }) => ops.add(x!, y!),
    expected: tensor([2, 4, 3, 5], i => image.data[i]! + wave([8], 3).data[Math.floor(i / 15)]!),
  },
  multiply: {
    inputs: { ...imageInput, y: { shape: [4, 1, 1], tensor: wave([4, 1, 1], 3) } },
    build: ({ x, y }) => ops.multiply(x!, y!),
    expected: tensor([2, 4, 3, 5], i => image.data[i]! * wave([4], 3).data[Math.floor(i / 15) % 4]!),
  },
  relu: { inputs: tokensInput, build: ({ x }) => ops.relu(x!), expected: map(tokens, x => Math.max(x, 0)) },
  silu: { inputs: tokensInput, build: ({ x }) => ops.silu(x!), expected: map(tokens, x => x * sigmoid(x)) },
  gelu: { inputs: tokensInput, build: ({ x }) => ops.gelu(x!), expected: map(tokens, x => x * 0.5 * (1 + erf(x / Math.SQRT2))) },
  quickGelu: { inputs: tokensInput, build: ({ x }) => ops.quickGelu(x!), expected: map(tokens, x => x * sigmoid(1.702 * x)) },
  activate: {
    inputs: tokensInput,
    build: ({ x }) => ops.activationKinds.map(kind => ops.activate(x!, kind)),
    expected: ops.activationKinds.map(kind => map(tokens, activations[kind])),
  },
  clamp: {
    inputs: tokensInput,
    build: ({ x }) => ops.clamp(x!, -0.25, 0.5),
    expected: map(tokens, x => Math.min(Math.max(x, -0.25), 0.5)),
  },
  conv2d: {
    inputs: imageInput,
    weights: { weight: wave([3, 4, 3, 3]), bias: wave([3]) },
    build: ({ x, weight, bias }) => ops.conv2d(x!, weight!, bias!, { stride: 2, pads: { top: 0, left: 0, bottom: 1, right: 1 } }),
    expected: convolve(image, wave([3, 4, 3, 3]), wave([3])),
  },
  linear: {
    inputs: tokensInput,
    weights: { weight: wave([5, 4]), bias: wave([5]), bare: wave([2, 5], 4) },
    // With and without a bias, and of a matrix: the emitter writes each in its own way.
    build: ({ x, weight, bias, bare }) => {
      const wide = ops.linear(x!, weight!, bias!);
      const [batch, length, width] = wide.shape;
      const rows = ops.linear(ops.reshape(x!, [tokenRows, 4]), weight!, bias!);
      return [wide, ops.linear(wide, bare!, null), ops.reshape(rows, [batch!, length!, width!])];
    },
    expected: [
      project(tokens, wave([5, 4]), wave([5])),
      project(project(tokens, wave([5, 4]), wave([5])), wave([2, 5], 4), null),
      project(tokens, wave([5, 4]), wave([5])),
    ],
  },
  lowRankLinear: {
    inputs: {
      ...tokensInput,
      row: { shape: [B!, 4], tensor: wave([2, 4], 5) },
      down: { shape: [R, 4], tensor: wave([2, 4], 6) },
      up: { shape: [5, R], tensor: wave([5, 2], 7) },
      downs: { shape: [B!, R, 4], tensor: wave([2, 2, 4], 8) },
      ups: { shape: [B!, 5, R], tensor: wave([2, 5, 2], 9) },
    },
    weights: { weight: wave([5, 4]), bias: wave([5]) },
    // 6 rows of width 4 are enough to change the weight, 2 rows or 3 rows an item are not.
    build: ({ x, row, down, up, downs, ups, weight, bias }) => {
      const [one, own] = [
        { down: down!, up: up! },
        { down: downs!, up: ups! },
      ];
      return [
        ops.lowRankLinear(x!, weight!, null, one),
        ops.lowRankLinear(x!, weight!, bias!, one),
        ops.lowRankLinear(row!, weight!, bias!, one),
        ops.lowRankLinear(x!, weight!, bias!, own),
        ops.lowRankLinear(row!, weight!, null, own),
      ];
    },
    expected: [
      project(tokens, changed(wave([2, 4], 6), wave([5, 2], 7)), null),
      project(tokens, changed(wave([2, 4], 6), wave([5, 2], 7)), wave([5])),
      project(wave([2, 4], 5), changed(wave([2, 4], 6), wave([5, 2], 7)), wave([5])),
      perItem(tokens, wave([5])),
      perItem(wave([2, 4], 5), null),
    ],
  },
  groupNorm: {
    inputs: imageInput,
    weights: norm,
    build: ({ x, weight, bias }) => ops.groupNorm(x!, weight!, bias!, { groups: 2, epsilon: 1e-3 }),
    expected: normalise(image, 30, 1e-3, i => Math.floor(i / 15) % 4),
  },
  layerNorm: {
    inputs: tokensInput,
    weights: norm,
    build: ({ x, weight, bias }) => ops.layerNorm(x!, weight!, bias!, { epsilon: 1e-3 }),
    expected: normalise(tokens, 4, 1e-3, i => i % 4),
  },
  attention: {
    inputs: {
      ...tokensInput,
      keys: { shape: [B!, S!, 4], tensor: wave([2, 5, 4], 1) },
      values: { shape: [B!, S!, 4], tensor: wave([2, 5, 4], 2) },
    },
    build: ({ x, keys, values }) => [
      ops.attention(x!, keys!, values!, { heads: 2, causal: false }),
      ops.attention(x!, ops.add(x!, x!), x!, { heads: 1, causal: true }),
    ],
    expected: [
      attend(tokens, wave([2, 5, 4], 1), wave([2, 5, 4], 2), 2, false),
      attend(
        tokens,
        map(tokens, x => 2 * x),
        tokens,
        1,
        true,
      ),
    ],
  },
  reshape: { inputs: imageInput, build: ({ x }) => ops.reshape(x!, [H!, B!, W!, 4]), expected: { ...image, shape: [3, 2, 5, 4] } },
  transpose: {
    inputs: tokensInput,
    build: ({ x }) => ops.transpose(x!, [1, 0, 2]),
    expected: tensor([3, 2, 4], i => tokens.data[(Math.floor(i / 4) % 2) * 12 + Math.floor(i / 8) * 4 + (i % 4)]!),
  },
  concat: {
    inputs: { ...tokensInput, y: { shape: [B!, S!, 4], tensor: wave([2, 1, 4], 3) } },
    build: ({ x, y }) => ops.concat([x!, y!], 1),
    expected: tensor([2, 4, 4], i =>
      i % 16 < 12 ? tokens.data[Math.floor(i / 16) * 12 + (i % 16)]! : wave([8], 3).data[Math.floor(i / 16) * 4 + (i % 4)]!,
    ),
  },
  split: {
    inputs: tokensInput,
    build: ({ x }) => ops.split(x!, 2, 2),
    expected: [0, 2].map(start => tensor([2, 3, 2], i => tokens.data[Math.floor(i / 2) * 4 + start + (i % 2)]!)),
  },
  resizeNearest: {
    inputs: { ...imageInput, like: { shape: [1, 1, symbol("H2"), symbol("W2")], tensor: wave([1, 1, 5, 9]) } },
    build: ({ x, like }) => ops.resizeNearest(x!, like!.shape[2]!, like!.shape[3]!),
    expected: tensor([2, 4, 5, 9], i => {
      const [plane, row, column] = [Math.floor(i / 45), Math.floor((i % 45) / 9), i % 9];
      return image.data[plane * 15 + Math.floor((row * 3) / 5) * 5 + Math.floor((column * 5) / 9)]!;
    }),
  },
  halve: {
    inputs: imageInput,
    build: ({ x }) => ops.halve(x!),
    // Of 3 x 5 pixels, those at the bottom and right edge are means of what is there.
    expected: tensor([2, 4, 2, 3], i => {
      const [plane, row, column] = [Math.floor(i / 6), Math.floor((i % 6) / 3), i % 3];
      const pixels = [0, 1].flatMap(y => [0, 1].map(x => [2 * row + y, 2 * column + x] as const)).filter(([y, x]) => y < 3 && x < 5);
      return pixels.reduce((sum, [y, x]) => sum + image.data[plane * 15 + y * 5 + x]!, 0) / pixels.length;
    }),
  },
  spatialMean: {
    inputs: imageInput,
    build: ({ x }) => ops.spatialMean(x!),
    expected: tensor([2, 4, 1, 1], i => image.data.subarray(i * 15, (i + 1) * 15).reduce((a, b) => a + b, 0) / 15),
  },
  subtract: {
    inputs: { ...tokensInput, y: { shape: [4], tensor: wave([4], 3) } },
    build: ({ x, y }) => ops.subtract(x!, y!),
    expected: tensor([2, 3, 4], i => tokens.data[i]! - wave([4], 3).data[i % 4]!),
  },
  scale: {
    inputs: tokensInput,
    build: ({ x }) => [ops.scale(x!, -2), ops.scale(x!, 1, 3), ops.scale(x!, 0.5, 1)],
    expected: [map(tokens, x => -2 * x), map(tokens, x => x + 3), map(tokens, x => 0.5 * x + 1)],
  },
  reciprocal: { inputs: positiveInput, build: ({ x }) => ops.reciprocal(x!), expected: map(positive, x => 1 / x) },
  sqrt: { inputs: positiveInput, build: ({ x }) => ops.sqrt(x!), expected: map(positive, Math.sqrt) },
  exp: { inputs: tokensInput, build: ({ x }) => ops.exp(x!), expected: map(tokens, Math.exp) },
  erf: { inputs: tokensInput, build: ({ x }) => ops.erf(x!), expected: map(tokens, erf) },
  step: {
    inputs: { x: { shape: [B!], tensor: { shape: [3], data: Float32Array.of(0.25, 0.5, 0.75) } } },
    build: ({ x }) => ops.step(x!, 0.5),
    expected: { shape: [3], data: Float32Array.of(0, 0, 1) },
  },
  matmul: {
    inputs: { ...tokensInput, y: { shape: [B!, S!, 4], tensor: wave([2, 5, 4], 1) }, z: { shape: [4, 3], tensor: wave([4, 3], 2) } },
    build: ({ x, y, z }) => [
      ops.matmul(x!, y!, { transposeB: true, scale: 2 }),
      ops.matmul(x!, x!, { transposeA: true }),
      ops.matmul(x!, z!),
    ],
    expected: [
      tensor(
        [2, 3, 5],
        i => 2 * dot(4, k => tokens.data[Math.floor(i / 5) * 4 + k]! * keys.data[(Math.floor(i / 15) * 5 + (i % 5)) * 4 + k]!),
      ),
      tensor([2, 4, 4], i => {
        const [item, row, column] = [Math.floor(i / 16) * 12, Math.floor(i / 4) % 4, i % 4];
        return dot(3, k => tokens.data[item + k * 4 + row]! * tokens.data[item + k * 4 + column]!);
      }),
      tensor([2, 3, 3], i => dot(4, k => tokens.data[Math.floor(i / 3) * 4 + k]! * wave([4, 3], 2).data[k * 3 + (i % 3)]!)),
    ],
  },
  softmax: {
    inputs: tokensInput,
    build: ({ x }) => ops.softmax(x!),
    expected: tensor([2, 3, 4], i => Math.exp(tokens.data[i]!) / dot(4, k => Math.exp(tokens.data[i - (i % 4) + k]!))),
  },
  maskFuture: {
    inputs: tokensInput,
    build: ({ x }) => ops.maskFuture(x!, 1),
    expected: tensor([2, 3, 4], i => (i % 4 > (Math.floor(i / 4) % 3) + 1 ? -1e30 : tokens.data[i]!)),
  },
  reduceSum: {
    inputs: tokensInput,
    build: ({ x }) => ops.reduceSum(x!, [0, 2]),
    expected: tensor([1, 3, 1], i => dot(8, k => tokens.data[Math.floor(k / 4) * 12 + i * 4 + (k % 4)]!)),
  },
  expand: {
    inputs: { ...tokensInput, y: { shape: [B!, 1, 4], tensor: wave([2, 1, 4], 3) } },
    build: ({ x, y }) => ops.expand(y!, x!.shape),
    expected: tensor([2, 3, 4], i => wave([8], 3).data[Math.floor(i / 12) * 4 + (i % 4)]!),
  },
  slice: {
    inputs: tokensInput,
    build: ({ x }) => ops.slice(x!, 2, 1, 3),
    expected: tensor([2, 3, 2], i => tokens.data[Math.floor(i / 2) * 4 + 1 + (i % 2)]!),
  },
  pad: {
    inputs: tokensInput,
    build: ({ x }) => ops.pad(x!, 2, 1, 2),
    expected: tensor([2, 3, 7], i => (i % 7 >= 1 && i % 7 < 5 ? tokens.data[Math.floor(i / 7) * 4 + (i % 7) - 1]! : 0)),
  },
  after: {
    inputs: { ...tokensInput, y: { shape: [B!, S!, 4], tensor: keys } },
    build: ({ x, y }) => ops.after(x!, [y!, ops.exp(y!)]),
    expected: tokens,
  },
  moments: {
    inputs: tokensInput,
    build: ({ x }) => Object.values(ops.moments(x!, 1e-3)),
    expected: [
      tensor([2, 3, 1], i => meanOf(i)),
      tensor([2, 3, 1], i => 1 / Math.sqrt(dot(4, k => (tokens.data[i * 4 + k]! - meanOf(i)) ** 2) / 4 + 1e-3)),
    ],
  },
  // The adjoints of the convolution, from its own definition: its response to one element at a time.
  convInputGradient: {
    inputs: { y: { shape: [2, 3, 1, 2], tensor: wave([2, 3, 1, 2], 3) }, weight: { shape: [3, 4, 3, 3], tensor: wave([3, 4, 3, 3]) } },
    build: ({ y, weight }) => ops.convInputGradient(y!, weight!, { ...uneven, height: 3, width: 5 }),
    expected: tensor([2, 4, 3, 5], i => {
      const response = convolve(
        unit([2, 4, 3, 5], i),
        wave([3, 4, 3, 3]),
        tensor([3], () => 0),
      );
      return dot(response.data.length, k => response.data[k]! * wave([12], 3).data[k]!);
    }),
  },
  convWeightGradient: {
    inputs: { x: { shape: [2, 4, 3, 5], tensor: image }, y: { shape: [2, 3, 1, 2], tensor: wave([2, 3, 1, 2], 3) } },
    build: ({ x, y }) => ops.convWeightGradient(x!, y!, { ...uneven, kernel: [3, 3] }),
    expected: tensor([3, 4, 3, 3], i => {
      const response = convolve(
        image,
        unit([3, 4, 3, 3], i),
        tensor([3], () => 0),
      );
      return dot(response.data.length, k => response.data[k]! * wave([12], 3).data[k]!);
    }),
  },
} satisfies Record<OpName, Case>;

describe("every op computes what its definition says", () => {
  test.each(Object.entries<Case>(cases))("%s", async (_, { inputs, weights, build, expected }) => {
    const graph = new Graph("test");
    const values = Object.fromEntries(Object.entries(inputs).map(([name, { shape }]) => [name, graph.input(name, shape)]));
    const made = [build({ ...values, ...(weights ? storeWeights(graph, weights) : {}) })].flat();
    made.forEach((value, i) => {
      graph.output(`out${i}`, value);
    });
    const results = await runGraph(graph, Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.tensor])));
    [expected].flat().forEach((want, i) => {
      const got = results[`out${i}`]!;
      expect(got.shape).toEqual(want.shape);
      got.data.forEach((value, j) => {
        expect(Math.abs(value - want.data[j]!), `out${i}[${j}]`).toBeLessThan(2e-6 * Math.max(1, Math.abs(want.data[j]!)));
      });
    });
  });
});

describe("emitting", () => {
  test("an output may be an input, or the same value twice", async () => {
    const graph = new Graph("test");
    const x = graph.input("x", [B!]);
    const doubled = ops.add(x, x);
    for (const [name, value] of Object.entries({ same: x, one: doubled, two: doubled })) graph.output(name, value);
    const results = await runGraph(graph, { x: tensor([2], i => i + 1) });
    expect(Object.fromEntries(Object.entries(results).map(([name, { data }]) => [name, [...data]]))).toEqual({
      same: [1, 2],
      one: [2, 4],
      two: [2, 4],
    });
  });

  test("a graph with a symbol that no input states alone is refused", () => {
    const graph = new Graph("test");
    graph.output("y", ops.silu(graph.input("x", [multiply(H!, 2)])));
    expect(() => emit(graph, cpuEmitter)).toThrow("shape at x: expected symbols [], got H");
  });

  test("an op outside the provider's list is refused", () => {
    const graph = new Graph("test");
    graph.output("y", ops.silu(graph.input("x", [B!])));
    expect(() => emit(graph, { ...cpuEmitter, ops: new Set(["Add", "Mul"]) })).toThrow(
      "expected one of Add, Mul, got com.microsoft:QuickGelu",
    );
  });

  test("a constant of more than 1 KB is refused", () => {
    const graph = new Graph("test");
    const [x, scale] = [graph.input("x", [B!, 514, H!, W!]), graph.input("scale", [514])];
    graph.output("y", ops.groupNorm(x, scale, scale, { groups: 257, epsilon: 1e-5 }));
    expect(() => emit(graph, cpuEmitter)).toThrow("expected at most 1024 bytes inline, got 1028");
  });

  test.each(executionProviderNames.filter(name => name !== "cpu"))("%s is said not to be built", name => {
    expect(() => emitterFor(name)).toThrow(ProviderError);
    expect(() => emitterFor(name)).toThrow(`execution provider: expected cpu, got ${name}, which is not built yet`);
  });
});

function map({ shape, data }: TensorF32, f: (x: number) => number): TensorF32 {
  return tensor(shape, i => f(data[i]!));
}

/** By its Taylor series, which converges fast for |x| < 2. */
function erf(x: number): number {
  let [term, sum] = [x, x];
  for (let n = 1; n < 60; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

/** 3x3, stride 2, one row and column of zeros at the bottom and right. */
function convolve(x: TensorF32, weight: TensorF32, bias: TensorF32): TensorF32 {
  const [, channels, height, width] = x.shape as [number, number, number, number];
  const [rows, columns] = [Math.floor((height - 2) / 2) + 1, Math.floor((width - 2) / 2) + 1];
  const filters = weight.shape[0]!;
  const at = (n: number, c: number, i: number, j: number): number =>
    i < height && j < width ? x.data[((n * channels + c) * height + i) * width + j]! : 0;
  return tensor([x.shape[0]!, filters, rows, columns], index => {
    const [n, f, row, column] = [
      Math.floor(index / (filters * rows * columns)),
      Math.floor(index / (rows * columns)) % filters,
      Math.floor(index / columns) % rows,
      index % columns,
    ];
    let sum = bias.data[f]!;
    for (let k = 0; k < channels * 9; k++) {
      const [c, i, j] = [Math.floor(k / 9), Math.floor(k / 3) % 3, k % 3];
      sum += weight.data[f * channels * 9 + k]! * at(n, c, row * 2 + i, column * 2 + j);
    }
    return sum;
  });
}

function project(x: TensorF32, weight: TensorF32, bias: TensorF32 | null): TensorF32 {
  const [out, width] = weight.shape as [number, number];
  return tensor([...x.shape.slice(0, -1), out], i => {
    const [row, column] = [Math.floor(i / out), i % out];
    let sum = bias ? bias.data[column]! : 0;
    for (let k = 0; k < width; k++) sum += x.data[row * width + k]! * weight.data[column * width + k]!;
    return sum;
  });
}

/** The weight [5, 4] plus up [5, 2] times down [2, 4]. */
function changed(down: TensorF32, up: TensorF32): TensorF32 {
  const base = wave([5, 4]);
  return tensor([5, 4], i => {
    const [row, column] = [Math.floor(i / 4), i % 4];
    return base.data[i]! + up.data[row * 2]! * down.data[column]! + up.data[row * 2 + 1]! * down.data[4 + column]!;
  });
}

/** Each of two items through a weight that its own pair has changed. */
function perItem(x: TensorF32, bias: TensorF32 | null): TensorF32 {
  const size = x.data.length / 2;
  const [downs, ups] = [wave([2, 2, 4], 8), wave([2, 5, 2], 9)];
  const items = [0, 1].map(item => {
    const down = { shape: [2, 4], data: downs.data.subarray(item * 8, (item + 1) * 8) };
    const up = { shape: [5, 2], data: ups.data.subarray(item * 10, (item + 1) * 10) };
    return project({ shape: [1, ...x.shape.slice(1)], data: x.data.subarray(item * size, (item + 1) * size) }, changed(down, up), bias);
  });
  return { shape: [2, ...items[0]!.shape.slice(1)], data: Float32Array.from(items.flatMap(({ data }) => [...data])) };
}

/** Runs of `size` elements to mean 0 and variance 1, then the scale and shift of each element's channel. */
function normalise(x: TensorF32, size: number, epsilon: number, channel: (index: number) => number): TensorF32 {
  return tensor(x.shape, i => {
    const run = [...x.data.subarray(Math.floor(i / size) * size, (Math.floor(i / size) + 1) * size)];
    const mean = run.reduce((a, b) => a + b) / size;
    const variance = run.reduce((sum, value) => sum + (value - mean) ** 2, 0) / size;
    return ((x.data[i]! - mean) / Math.sqrt(variance + epsilon)) * norm.weight.data[channel(i)]! + norm.bias.data[channel(i)]!;
  });
}

function attend(query: TensorF32, key: TensorF32, value: TensorF32, heads: number, causal: boolean): TensorF32 {
  const [, length, width] = query.shape as [number, number, number];
  const keys = key.shape[1]!;
  const depth = width / heads;
  return tensor(query.shape, index => {
    const [item, row, column] = [Math.floor(index / (length * width)), Math.floor(index / width) % length, index % width];
    const head = Math.floor(column / depth) * depth;
    const scores = Array.from({ length: causal ? row + 1 : keys }, (_, s) => {
      let dot = 0;
      for (let d = head; d < head + depth; d++)
        dot += query.data[(item * length + row) * width + d]! * key.data[(item * keys + s) * width + d]!;
      return Math.exp(dot / Math.sqrt(depth));
    });
    const total = scores.reduce((a, b) => a + b);
    return scores.reduce((sum, score, s) => sum + (score / total) * value.data[(item * keys + s) * width + column]!, 0);
  });
}
