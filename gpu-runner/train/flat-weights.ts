/** Graphs all of whose weights are trained: built over a flat buffer instead of a file, so that fused or cut tensors stay views of it. */
import type { TensorF32 } from "../components.ts";
import { Graph, type StoredTensor, type Value } from "../graph/ir.ts";
import type { Feeds } from "../session.ts";
import type { WeightSource } from "../weights/weights.ts";
import type { TrainedTensor, TrainedTensors } from "./trained-tensors.ts";

/** Notes what graphs take, in that order, and places it side by side as `TrainedTensors` of `list` will. */
export class FlatWeights {
  readonly list: TrainedTensor[] = [];
  #bytes = 0;

  /** A tensor that begins where the last one ended; its key is its name in result files. */
  take(name: string, shape: readonly number[]): StoredTensor {
    const byteLength = 4 * shape.reduce((a, b) => a * b, 1);
    const stored = { key: name, file: "", offset: this.#bytes, byteLength, shape };
    this.list.push({ name, shape, group: "main" });
    this.#bytes += byteLength;
    return stored;
  }

  /** Where a graph takes its weights from whose names lack the prefix that result files have. */
  source(prefix = ""): WeightSource {
    return { take: (name, shape) => this.take(prefix + name, shape) };
  }
}

interface View {
  offset: number;
  shape: readonly number[];
}

/** A graph whose weights have become inputs of the same names, and where in the flat buffer each input lies. */
export class FlatGraph {
  readonly graph: Graph;
  readonly #views = new Map<string, View>();

  constructor(source: Graph) {
    this.graph = new Graph(source.name);
    const values = new Map<Value, Value>();
    for (const input of source.inputs) values.set(input, this.graph.input(input.name, input.shape, input.dtype));
    for (const weight of source.weights) {
      const shape = weight.shape as readonly number[];
      this.#views.set(weight.name, { offset: weight.stored!.offset / 4, shape });
      values.set(weight, this.graph.input(weight.name, shape));
    }
    for (const node of source.nodes) {
      const inputs = node.inputs.map(input => values.get(input)!);
      const shapes = node.outputs.map(({ shape }) => shape);
      const outputs = this.graph.add(node.op, inputs, node.attributes, shapes);
      node.outputs.forEach((output, i) => {
        values.set(output, outputs[i]!);
      });
    }
    for (const { name, value } of source.outputs) this.graph.output(name, values.get(value)!);
  }

  /** The inputs that were weights. */
  get inputs(): readonly string[] {
    return [...this.#views.keys()];
  }

  feeds({ values }: TrainedTensors): Feeds {
    const feeds = [...this.#views].map(([name, { offset, shape }]): [string, TensorF32] => [
      name,
      { data: values.subarray(offset, offset + elements(shape)), shape },
    ]);
    return Object.fromEntries(feeds);
  }

  /** @param gradientOf the gradient of an input */
  addGradients({ gradients }: TrainedTensors, gradientOf: (input: string) => TensorF32): void {
    for (const [name, { offset }] of this.#views) addInto(gradients.subarray(offset), gradientOf(name).data);
  }
}

/** into[i] += values[i] for all values. */
export function addInto(into: Float32Array, values: Float32Array): void {
  for (let i = 0; i < values.length; i++) into[i]! += values[i]!;
}

function elements(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
