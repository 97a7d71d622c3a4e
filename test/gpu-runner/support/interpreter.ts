/**
 * Evaluates graphs in double precision, one function an op, by loops that follow the definition. It shares nothing with the
 * emitters or ONNX Runtime, so that both and the gradient rules can be held against it.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { evaluate as evaluateDim, type Sizes } from "../../../gpu-runner/graph/dims.ts";
import type { Graph, Value } from "../../../gpu-runner/graph/ir.ts";
import type { ActivationKind, Attributes, OpName } from "../../../gpu-runner/graph/ops.ts";

/** A tensor in double precision, row-major. */
export interface Tensor64 {
  shape: readonly number[];
  data: Float64Array;
}
export type Feeds64 = Readonly<Record<string, Tensor64>>;

/** What an op makes of its inputs; `shapes` are those of its outputs. */
type Evaluate<K extends OpName> = (
  inputs: readonly Tensor64[],
  attributes: Attributes[K],
  shapes: readonly (readonly number[])[],
) => Float64Array[];

/** All outputs of a graph by name. */
export function interpret(graph: Graph, feeds: Feeds64): Record<string, Tensor64> {
  const sizes: Sizes = new Map([...graph.symbols()].map(([name, { input, axis }]) => [name, feeds[input.name]!.shape[axis]!]));
  const shapeOf = (value: Value): number[] => value.shape.map(dim => evaluateDim(dim, sizes));
  const known = new Map<Value, Tensor64>();
  for (const input of graph.inputs) {
    const tensor = feeds[input.name];
    if (!tensor) throw new Error(`${input.name}: expected a feed, got none`);
    if (String(tensor.shape) !== String(shapeOf(input)))
      throw new Error(`${input.name}: expected [${shapeOf(input)}], got [${tensor.shape}]`);
    known.set(input, tensor);
  }
  for (const weight of graph.weights) known.set(weight, { shape: shapeOf(weight), data: stored(weight) });
  for (const node of graph.nodes) {
    // The table's row belongs to the node's op, which the compiler cannot follow through an index.
    const rule = table[node.op] as Evaluate<OpName>;
    const shapes = node.outputs.map(shapeOf);
    const results = rule(
      node.inputs.map(input => known.get(input)!),
      node.attributes,
      shapes,
    );
    node.outputs.forEach((output, i) => {
      if (results[i]!.length !== count(shapes[i]!))
        throw new Error(`${node.name}: expected [${shapes[i]}], got ${results[i]!.length} elements`);
      known.set(output, { shape: shapes[i]!, data: results[i]! });
    });
  }
  return Object.fromEntries(graph.outputs.map(({ name, value }) => [name, known.get(value)!]));
}

const table: { readonly [K in OpName]: Evaluate<K> } = {
  add: ([a, b], _, [shape]) => [broadcast(a!, b!, shape!, (x, y) => x + y)],
  multiply: ([a, b], _, [shape]) => [broadcast(a!, b!, shape!, (x, y) => x * y)],
  relu: ([x]) => [x!.data.map(v => Math.max(v, 0))],
  silu: ([x]) => [x!.data.map(v => v * sigmoid(v))],
  gelu: ([x]) => [x!.data.map(v => 0.5 * v * (1 + erf(v / Math.SQRT2)))],
  quickGelu: ([x]) => [x!.data.map(v => v * sigmoid(1.702 * v))],
  activate: ([x], { kind }) => [x!.data.map(activations[kind])],
  clamp: ([x], { minimum, maximum }) => [x!.data.map(v => Math.min(Math.max(v, minimum), maximum))],
  conv2d: ([x, weight, bias], { stride, pads }, [shape]) => {
    const result = generate(shape!, ([, filter]) => bias?.data[filter!] ?? 0);
    convTerms(x!.shape, weight!.shape, shape!, stride, pads, (from, w, y) => {
      result[y]! += x!.data[from]! * weight!.data[w]!;
    });
    return [result];
  },
  linear: ([x, weight, bias], _, [shape]) => [linear(x!, weight!, bias, shape!)],
  lowRankLinear: ([x, weight, down, up, bias], { perItem }, [shape]) => [lowRankLinear(x!, weight!, down!, up!, bias, perItem, shape!)],
  groupNorm: ([x, weight, bias], { groups, epsilon }) => {
    const [batch, channels] = x!.shape as [number, number];
    const pixels = x!.data.length / (batch * channels);
    return [normalise(x!.data, batch * groups, epsilon, i => Math.floor(i / pixels) % channels, weight!.data, bias!.data)];
  },
  layerNorm: ([x, weight, bias], { epsilon }) => {
    const width = x!.shape.at(-1)!;
    return [normalise(x!.data, x!.data.length / width, epsilon, i => i % width, weight!.data, bias!.data)];
  },
  attention: ([query, key, value], { heads, causal }) => [attention(query!, key!, value!, heads, causal)],
  reshape: ([x]) => [x!.data],
  transpose: ([x], { permutation }, [shape]) => [
    gather(x!, shape!, to => {
      const from = Array<number>(to.length);
      permutation.forEach((axis, i) => {
        from[axis] = to[i]!;
      });
      return from;
    }),
  ],
  concat: (inputs, { axis }, [shape]) => {
    const starts = inputs.map((_, i) => inputs.slice(0, i).reduce((sum, input) => sum + input.shape[axis]!, 0));
    return [
      generate(shape!, to => {
        const i = starts.findLastIndex(start => start <= to[axis]!);
        return inputs[i]!.data[offset(inputs[i]!.shape, to.with(axis, to[axis]! - starts[i]!))]!;
      }),
    ];
  },
  split: ([x], { axis }, shapes) => shapes.map((shape, part) => gather(x!, shape, to => to.with(axis, to[axis]! + part * shape[axis]!))),
  resizeNearest: ([x], _, [shape]) => {
    const [, , height, width] = shape as [number, number, number, number];
    const [, , h, w] = x!.shape as [number, number, number, number];
    return [gather(x!, shape!, ([b, c, row, column]) => [b!, c!, Math.floor((row! * h) / height), Math.floor((column! * w) / width)])];
  },
  halve: ([x], _, [shape]) => {
    const [, , h, w] = x!.shape as [number, number, number, number];
    return [
      generate(shape!, ([b, c, row, column]) => {
        const under: number[] = [];
        for (const y of [2 * row!, 2 * row! + 1])
          for (const z of [2 * column!, 2 * column! + 1]) if (y < h && z < w) under.push(x!.data[offset(x!.shape, [b!, c!, y, z])]!);
        return under.reduce((a, v) => a + v, 0) / under.length;
      }),
    ];
  },
  spatialMean: ([x], _, [shape]) => {
    const pixels = x!.data.length / count(shape!);
    return [Float64Array.from({ length: count(shape!) }, (_, i) => sum(x!.data.subarray(i * pixels, (i + 1) * pixels)) / pixels)];
  },
  subtract: ([a, b], _, [shape]) => [broadcast(a!, b!, shape!, (x, y) => x - y)],
  scale: ([x], { factor, shift }) => [x!.data.map(v => factor * v + shift)],
  reciprocal: ([x]) => [x!.data.map(v => 1 / v)],
  sqrt: ([x]) => [x!.data.map(Math.sqrt)],
  exp: ([x]) => [x!.data.map(Math.exp)],
  erf: ([x]) => [x!.data.map(erf)],
  step: ([x], { threshold }) => [x!.data.map(v => (v > threshold ? 1 : 0))],
  matmul: ([a, b], { transposeA, transposeB, scale }, [shape]) => {
    const depth = a!.shape.at(transposeA ? -2 : -1)!;
    return [
      generate(shape!, index => {
        const [row, column] = index.slice(-2) as [number, number];
        let total = 0;
        for (let k = 0; k < depth; k++)
          total +=
            a!.data[broadcastOffset(a!.shape, [...index.slice(0, -2), ...(transposeA ? [k, row] : [row, k])])]! *
            b!.data[broadcastOffset(b!.shape, [...index.slice(0, -2), ...(transposeB ? [column, k] : [k, column])])]!;
        return total * scale;
      }),
    ];
  },
  softmax: ([x]) => [Float64Array.from(rows(x!).flatMap(row => softmaxOf([...row])))],
  maskFuture: ([x], attributes, [shape]) => [
    generate(shape!, index => {
      const [query, key] = index.slice(-2) as [number, number];
      return x!.data[offset(shape!, index)]! + (key > query + attributes.offset ? -1e30 : 0);
    }),
  ],
  reduceSum: ([x], _, [shape]) => {
    const result = new Float64Array(count(shape!));
    everyIndex(x!.shape, (index, i) => {
      result[broadcastOffset(shape!, index)]! += x!.data[i]!;
    });
    return [result];
  },
  after: ([x]) => [x!.data],
  expand: ([x], _, [shape]) => [generate(shape!, index => x!.data[broadcastOffset(x!.shape, index)]!)],
  slice: ([x], { axis, start }, [shape]) => [gather(x!, shape!, to => to.with(axis, to[axis]! + start))],
  pad: ([x], { axis, before }, [shape]) => [
    generate(shape!, to => {
      const from = to[axis]! - before;
      return from < 0 || from >= x!.shape[axis]! ? 0 : x!.data[offset(x!.shape, to.with(axis, from))]!;
    }),
  ],
  moments: ([x], { epsilon }) => {
    const width = x!.shape.at(-1)!;
    const means = rows(x!).map(row => sum(row) / width);
    const variances = rows(x!).map((row, i) => sum(row.map(v => (v - means[i]!) ** 2)) / width);
    return [Float64Array.from(means), Float64Array.from(variances, v => 1 / Math.sqrt(v + epsilon))];
  },
  convInputGradient: ([gradient, weight], { stride, pads }, [shape]) => {
    const result = new Float64Array(count(shape!));
    convTerms(shape!, weight!.shape, gradient!.shape, stride, pads, (x, w, y) => {
      result[x]! += weight!.data[w]! * gradient!.data[y]!;
    });
    return [result];
  },
  convWeightGradient: ([x, gradient], { stride, pads }, [shape]) => {
    const result = new Float64Array(count(shape!));
    convTerms(x!.shape, shape!, gradient!.shape, stride, pads, (from, w, y) => {
      result[w]! += x!.data[from]! * gradient!.data[y]!;
    });
    return [result];
  },
};

const activations = {
  leakyRelu: v => (v >= 0 ? v : 0.01 * v),
  elu: v => (v >= 0 ? v : Math.expm1(v)),
  hardSwish: v => (v * Math.min(Math.max(v + 3, 0), 6)) / 6,
  tanh: Math.tanh,
  sigmoid,
  softsign: v => v / (1 + Math.abs(v)),
  mish: v => v * Math.tanh(Math.log1p(Math.exp(v))),
} satisfies Record<ActivationKind, (v: number) => number>;

function sigmoid(v: number): number {
  return 1 / (1 + Math.exp(-v));
}

/** Error function to double precision: its Maclaurin series near zero, its continued fraction beyond (Abramowitz and Stegun 7.1.6, 7.1.14). */
export function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 6) return Math.sign(x);
  if (z < 2.5) {
    let term = x;
    let total = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(total); n++) {
      term *= (2 * z * z) / (2 * n + 1);
      total += term;
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-z * z) * total;
  }
  let fraction = z;
  for (let n = 120; n >= 1; n--) fraction = z + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-z * z) / (Math.sqrt(Math.PI) * fraction));
}

/** Calls `term` with the places of x, weight and result of every product that a convolution sums. */
function convTerms(
  [batch, channels, height, width]: readonly number[],
  [filters, , kernelHeight, kernelWidth]: readonly number[],
  [, , rows, columns]: readonly number[],
  stride: number,
  pads: { top: number; left: number },
  term: (x: number, weight: number, result: number) => void,
): void {
  everyIndex([batch!, filters!, rows!, columns!], ([b, filter, row, column], result) => {
    everyIndex([channels!, kernelHeight!, kernelWidth!], ([c, i, j]) => {
      const [y, z] = [row! * stride + i! - pads.top, column! * stride + j! - pads.left];
      if (y < 0 || y >= height! || z < 0 || z >= width!) return;
      const weight = ((filter! * channels! + c!) * kernelHeight! + i!) * kernelWidth! + j!;
      term(((b! * channels! + c!) * height! + y) * width! + z, weight, result);
    });
  });
}

function linear(x: Tensor64, weight: Tensor64, bias: Tensor64 | undefined, shape: readonly number[]): Float64Array {
  const [out, width] = weight.shape as [number, number];
  const result = new Float64Array(count(shape));
  for (let i = 0; i < result.length; i++) {
    const [row, o] = [Math.floor(i / out), i % out];
    let total = bias?.data[o] ?? 0;
    for (let k = 0; k < width; k++) total += x.data[row * width + k]! * weight.data[o * width + k]!;
    result[i] = total;
  }
  return result;
}

function lowRankLinear(
  x: Tensor64,
  weight: Tensor64,
  down: Tensor64,
  up: Tensor64,
  bias: Tensor64 | undefined,
  perItem: boolean,
  shape: readonly number[],
): Float64Array {
  const [out, width] = weight.shape as [number, number];
  const rank = down.shape.at(-2)!;
  const items = perItem ? x.shape[0]! : 1;
  const [rows, results] = [x.data.length / items, count(shape) / items];
  const result = new Float64Array(count(shape));
  for (let item = 0; item < items; item++) {
    const changed = weight.data.map((v, i) => {
      const [o, k] = [Math.floor(i / width), i % width];
      for (let r = 0; r < rank; r++) v += up.data[(item * out + o) * rank + r]! * down.data[(item * rank + r) * width + k]!;
      return v;
    });
    const own = { shape: [rows / width, width], data: x.data.subarray(item * rows, (item + 1) * rows) };
    result.set(linear(own, { shape: weight.shape, data: changed }, bias, [rows / width, out]), item * results);
  }
  return result;
}

function normalise(
  data: Float64Array,
  groups: number,
  epsilon: number,
  channel: (index: number) => number,
  scale: Float64Array,
  shift: Float64Array,
): Float64Array {
  const size = data.length / groups;
  const result = new Float64Array(data.length);
  for (let g = 0; g < groups; g++) {
    const part = data.subarray(g * size, (g + 1) * size);
    const mean = sum(part) / size;
    const variance = sum(part.map(v => (v - mean) ** 2)) / size;
    for (let i = g * size; i < (g + 1) * size; i++)
      result[i] = ((data[i]! - mean) / Math.sqrt(variance + epsilon)) * scale[channel(i)]! + shift[channel(i)]!;
  }
  return result;
}

function attention(query: Tensor64, key: Tensor64, value: Tensor64, heads: number, causal: boolean): Float64Array {
  const [batch, length, width] = query.shape as [number, number, number];
  const keys = key.shape[1]!;
  const size = width / heads;
  const result = new Float64Array(query.data.length);
  for (let b = 0; b < batch; b++)
    for (let head = 0; head < heads; head++)
      for (let t = 0; t < length; t++) {
        const at = (row: number, rows: number): number => (b * rows + row) * width + head * size;
        const seen = causal ? t + 1 : keys;
        const scores = Array.from({ length: seen }, (_, s) => {
          let dot = 0;
          for (let i = 0; i < size; i++) dot += query.data[at(t, length) + i]! * key.data[at(s, keys) + i]!;
          return dot / Math.sqrt(size);
        });
        softmaxOf(scores).forEach((share, s) => {
          for (let i = 0; i < size; i++) result[at(t, length) + i]! += share * value.data[at(s, keys) + i]!;
        });
      }
  return result;
}

function softmaxOf(scores: readonly number[]): number[] {
  const greatest = Math.max(...scores);
  const powers = scores.map(score => Math.exp(score - greatest));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map(power => power / total);
}

function broadcast(a: Tensor64, b: Tensor64, shape: readonly number[], f: (x: number, y: number) => number): Float64Array {
  return generate(shape, index => f(a.data[broadcastOffset(a.shape, index)]!, b.data[broadcastOffset(b.shape, index)]!));
}

/** Where a tensor of this shape, broadcast to the rank of `index`, has its element. */
function broadcastOffset(shape: readonly number[], index: readonly number[]): number {
  const own = index.slice(index.length - shape.length);
  return offset(
    shape,
    own.map((i, axis) => (shape[axis] === 1 ? 0 : i)),
  );
}

/** Each element from the place in `x` that `from` names. */
function gather(x: Tensor64, shape: readonly number[], from: (index: number[]) => number[]): Float64Array {
  return generate(shape, index => x.data[offset(x.shape, from(index))]!);
}

function generate(shape: readonly number[], f: (index: number[]) => number): Float64Array {
  const result = new Float64Array(count(shape));
  everyIndex(shape, (index, i) => {
    result[i] = f([...index]);
  });
  return result;
}

/** Calls `f` with every index of a shape in order, and its place. */
function everyIndex(shape: readonly number[], f: (index: readonly number[], place: number) => void): void {
  const index = Array<number>(shape.length).fill(0);
  const places = count(shape);
  for (let i = 0; i < places; i++) {
    f(index, i);
    for (let axis = shape.length - 1; axis >= 0 && ++index[axis]! === shape[axis]; axis--) index[axis] = 0;
  }
}

/** Runs along the last axis. */
function rows({ shape, data }: Tensor64): Float64Array[] {
  const width = shape.at(-1)!;
  return Array.from({ length: data.length / width }, (_, i) => data.subarray(i * width, (i + 1) * width));
}

function offset(shape: readonly number[], index: readonly number[]): number {
  return shape.reduce((total, size, axis) => total * size + index[axis]!, 0);
}

function count(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

function sum(values: Float64Array): number {
  return values.reduce((a, b) => a + b, 0);
}

function stored({ stored, name }: Value): Float64Array {
  if (!stored) throw new Error(`${name}: expected a weight`);
  const bytes = Buffer.alloc(stored.byteLength);
  const file = openSync(stored.file, "r");
  readSync(file, bytes, 0, bytes.length, stored.offset);
  closeSync(file);
  return Float64Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(i * 4));
}
