/**
 * The graph: values and the nodes that make them, in the order of their making. It says what is computed, not how: an
 * emitter per execution provider (`emitters/`) turns each op into ONNX nodes. Ops are added by the functions of `ops.ts`.
 */
import { asSymbol, type Shape, shapeName } from "./dims.ts";
import type { Attributes, OpName } from "./ops.ts";

export type DType = "float32" | "int64";

/** A tensor that lies in a file: little-endian fp32 at an absolute offset. */
export interface StoredTensor {
  key: string;
  file: string;
  offset: number;
  byteLength: number;
  shape: readonly number[];
}

export interface Value {
  readonly graph: Graph;
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
  /** Where it comes from: fed at run time, stored in a file, or computed by a node. */
  readonly source: "input" | "weight" | "node";
  readonly stored?: StoredTensor;
}

/** A node of one op; `Node` is the union over all ops, discriminated by `op`. */
export interface NodeOf<K extends OpName> {
  readonly op: K;
  readonly name: string;
  readonly inputs: readonly Value[];
  readonly attributes: Attributes[K];
  readonly outputs: readonly Value[];
}
export type Node = { [K in OpName]: NodeOf<K> }[OpName];

/** A graph that cannot be built or emitted. */
export class GraphError extends Error {
  readonly node: string;
  readonly op: string;
  readonly expected: string;
  readonly got: string;
  constructor(node: string, op: string, expected: string, got: string) {
    super(`${op} at ${node}: expected ${expected}, got ${got}`);
    this.name = "GraphError";
    this.node = node;
    this.op = op;
    this.expected = expected;
    this.got = got;
  }
}

export class Graph {
  readonly name: string;
  readonly inputs: Value[] = [];
  readonly weights: Value[] = [];
  readonly nodes: Node[] = [];
  readonly outputs: { name: string; value: Value }[] = [];
  /**
   * Whether nodes are to run as near to the order of their making as their use allows, rather than in the provider's own order:
   * a graph with gradients holds far less at once so.
   */
  readonly inOrder: boolean;
  readonly #names = new Set<string>();

  constructor(name: string, { inOrder }: { inOrder: boolean } = { inOrder: false }) {
    this.name = name;
    this.inOrder = inOrder;
  }

  /** A tensor fed at run time. Each symbol of the graph must stand alone as a dim of some input, which is where its size is read. */
  input(name: string, shape: Shape, dtype: DType = "float32"): Value {
    const value: Value = { graph: this, name: this.#claim(name, "input"), dtype, shape, source: "input" };
    this.inputs.push(value);
    return value;
  }

  /** A constant that lies in a file. `shape` may be another view of the same elements, such as a 1x1 convolution as a matrix. */
  weight(stored: StoredTensor, shape: readonly number[] = stored.shape): Value {
    const elements = shape.reduce((a, b) => a * b, 1);
    if (elements * 4 !== stored.byteLength)
      throw new GraphError(stored.key, "weight", `${stored.byteLength} bytes`, `shape ${shapeName(shape)}`);
    const value: Value = { graph: this, name: this.#claim(stored.key, "weight"), dtype: "float32", shape, source: "weight", stored };
    this.weights.push(value);
    return value;
  }

  output(name: string, value: Value): void {
    this.outputs.push({ name: this.#claim(name, "output"), value });
  }

  /** Appends a node with one output per shape; used by `ops.ts` only. The name tells where in the model it stands. */
  add<K extends OpName>(op: K, inputs: readonly Value[], attributes: Attributes[K], shapes: readonly Shape[]): Value[] {
    const name = this.nameFor(op, inputs);
    for (const input of inputs)
      if (input.graph !== this)
        throw new GraphError(name, op, `inputs of graph ${this.name}`, `${input.name} of graph ${input.graph.name}`);
    const outputs = shapes.map((shape, i): Value => {
      const output = shapes.length === 1 ? name : `${name}.${i}`;
      return { graph: this, name: this.#claim(output, op), dtype: "float32", shape, source: "node" };
    });
    // A mapped union cannot be narrowed from its generic member; the parameter types above tie op and attributes together.
    this.nodes.push({ op, name, inputs, attributes, outputs } as unknown as Node);
    return outputs;
  }

  /** The name that a node over these inputs would get: its weight's key, or else the op, and a number that makes it unique. */
  nameFor(op: OpName, inputs: readonly Value[]): string {
    const weight = inputs.find(input => input.source === "weight");
    return `${weight ? `${weight.name.replace(/\.(weight|bias)$/, "")}/` : ""}${op}.${this.nodes.length}`;
  }

  /** The symbols that the inputs bind: name to (input, axis). */
  symbols(): ReadonlyMap<string, { input: Value; axis: number }> {
    const found = new Map<string, { input: Value; axis: number }>();
    for (const input of this.inputs)
      input.shape.forEach((dim, axis) => {
        const name = asSymbol(dim);
        if (name !== null && !found.has(name)) found.set(name, { input, axis });
      });
    return found;
  }

  #claim(name: string, op: string): string {
    if (this.#names.has(name)) throw new GraphError(name, op, "a name of its own", "a name in use");
    this.#names.add(name);
    return name;
  }
}
