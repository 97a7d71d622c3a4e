/** Builds the ONNX form of a graph: names, shapes of every tensor, external initialisers, reshape targets, serialisation. */
import { create, toBinary } from "@bufbuild/protobuf";
import { type Dim, dimName, equal, type Shape, symbolsOf } from "./dims.ts";
import { type DType, type Graph, GraphError, type StoredTensor, type Value } from "./ir.ts";
import {
  type AttributeProto,
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  type GraphProto,
  GraphProtoSchema,
  ModelProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProto_DataType,
  TensorProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from "./onnx_pb.js";

/** Several ops of opset 21 to 23 lack GPU kernels; 20 has all that is needed. */
const opset = 20;
const irVersion = 9;
export const microsoft = "com.microsoft";
/** ONNX Runtime's own convolutions over blocks of channels. */
export const blockedChannels = "com.microsoft.nchwc";

/** Constants beyond this lie outside the graph file. */
const maxInlineBytes = 1024;

export type AttributeValue = number | string | readonly number[] | { float: number } | GraphProto;

export interface Condition {
  name: string;
  dim: Dim;
  atLeast: number;
}

/** Nodes under construction, with the shapes of what they make: the whole graph's, or those of one branch of an If. */
interface Scope {
  nodes: NodeProto[];
  values: Map<string, ValueInfoProto>;
}

/** How the weight [Cout, Cin, k, k] of a convolution lies in memory. */
export interface WeightLayout {
  /** As the gradient in its input reads it: [Cin, Cout, k, k], height and width reversed. */
  flipped: boolean;
  /** Channels that lie side by side: of [M, N, k, k] it is [M / b, N / b, k, k, b (of N), b (of M)]. 1: as the shape says. */
  block: number;
}

/** A constant of the graph that lies in no file yet: a convolution's weight in another layout. */
export interface RelaidWeight {
  stored: StoredTensor;
  /** Of the weight as it lies in its file, [Cout, Cin, k, k]. */
  shape: readonly number[];
  layout: WeightLayout;
}

export interface OnnxModel {
  graph: Graph;
  /** Each has to lie in a file of its own. */
  relaid: readonly RelaidWeight[];
  /** int64 vectors to be fed beside the graph's own inputs, computed from the sizes of these. */
  shapeInputs: readonly { name: string; dims: Shape }[];
  /** Scalar booleans to be fed likewise: whether a dim is at least so much. */
  conditionInputs: readonly Condition[];
  /** Files that the initialisers lie in; `bytes` refers to them by their place in this list. */
  files: readonly string[];
  /** Count of nodes by op. */
  census: ReadonlyMap<string, number>;
  /** In the order of the file. */
  nodes: readonly NodeProto[];
  /** Of what the nodes make, by name. */
  shapes: ReadonlyMap<string, Shape>;
  /** Serialises the model; `locations` are the names of `files`, then those of the files of `relaid`, as seen from the model's own folder. */
  bytes(locations: readonly string[]): Uint8Array;
}

export class OnnxBuilder {
  /** Channels that the provider's convolutions take side by side; 1: it has none that do, or they are not to be used. */
  readonly channelBlock: number;
  readonly #graph: Graph;
  readonly #whole: Scope = { nodes: [], values: new Map() };
  #scope = this.#whole;
  readonly #inline = new Map<string, TensorProto>();
  readonly #initializers = new Map<string, { stored: StoredTensor; shape: readonly number[] }>();
  readonly #relaid = new Map<string, RelaidWeight>();
  readonly #shapeInputs = new Map<string, { name: string; dims: Shape }>();
  readonly #conditions = new Map<string, Condition>();
  /** Those of branches too. */
  readonly #allNodes: NodeProto[] = [];
  readonly #shapes = new Map<string, Shape>();
  readonly #outputNames = new Map<Value, string>();
  #temporaries = 0;

  constructor(graph: Graph, channelBlock: number) {
    this.#graph = graph;
    this.channelBlock = channelBlock;
    for (const { name, value } of graph.outputs)
      if (value.source === "node" && !this.#outputNames.has(value)) this.#outputNames.set(value, name);
  }

  /** The ONNX name of a value of the graph. */
  name(value: Value): string {
    if (value.stored) return this.#external(value.name, value.stored, numbers(value));
    return this.#outputNames.get(value) ?? value.name;
  }

  /** A value in another shape: of a weight a second initialiser over the same bytes, of anything else a Reshape. */
  view(value: Value, shape: readonly number[]): string {
    if (value.stored) return this.#external(`${value.name}[${shape}]`, value.stored, shape);
    return this.temporary("Reshape", [this.name(value), this.ints(shape)], shape);
  }

  /** A stored convolution's weight in another layout: an initialiser of its own, [Cout, Cin, k, k], or [Cin, Cout, k, k] where it is flipped. */
  relaid(weight: Value, layout: WeightLayout): string {
    const name = `${weight.name}/${layout.flipped ? "flipped" : "straight"}.${layout.block}`;
    if (!this.#relaid.has(name)) this.#relaid.set(name, { stored: weight.stored!, shape: numbers(weight), layout });
    return name;
  }

  /** Adds an ONNX node that makes values of the graph. */
  node(
    op: string,
    inputs: readonly string[],
    outputs: readonly Value[],
    attributes: Readonly<Record<string, AttributeValue>> = {},
    domain = "",
  ): void {
    const names = outputs.map(value => this.#declare(this.name(value), value.shape, value.dtype));
    this.#push(op, inputs, names, attributes, domain);
  }

  /** Adds an ONNX node whose result only other nodes of the same rule see; gives its name. */
  temporary(
    op: string,
    inputs: readonly string[],
    shape: Shape,
    attributes: Readonly<Record<string, AttributeValue>> = {},
    domain = "",
  ): string {
    const name = this.#declare(`t${this.#temporaries++}`, shape, "float32");
    this.#push(op, inputs, [name], attributes, domain);
    return name;
  }

  /** The value of one of two branches, decided at each run: their rules add nodes and give the name of a result of this shape. */
  choose(condition: string, shape: Shape, branches: { whenTrue: () => string; whenFalse: () => string }): string {
    const graphs = { then_branch: this.#branch(branches.whenTrue, shape), else_branch: this.#branch(branches.whenFalse, shape) };
    return this.temporary("If", [condition], shape, graphs);
  }

  /** Whether a dim is at least `atLeast`, as a scalar boolean that the session computes from the feeds. */
  isAtLeast(dim: Dim, atLeast: number): string {
    const name = `${dimName(dim)}>=${atLeast}`;
    this.#conditions.set(name, { name, dim, atLeast });
    return name;
  }

  /** A small fp32 constant; equal ones are kept once. */
  floats(values: readonly number[], shape: readonly number[] = [values.length]): string {
    const data = Float32Array.from(values);
    return this.#constant(`f32[${shape}]=${values.join(",")}`, TensorProto_DataType.FLOAT, shape, new Uint8Array(data.buffer));
  }

  /** A small int64 vector. */
  ints(values: readonly number[]): string {
    const data = BigInt64Array.from(values.map(BigInt));
    return this.#constant(`i64[${values}]`, TensorProto_DataType.INT64, [values.length], new Uint8Array(data.buffer));
  }

  /** One int64, as a scalar. */
  int(value: number): string {
    return this.#constant(`i64=${value}`, TensorProto_DataType.INT64, [], new Uint8Array(BigInt64Array.of(BigInt(value)).buffer));
  }

  /** The target of a Reshape from one shape to another: a constant if 0 (copy) and one -1 (infer) suffice, else an input. */
  reshapeTarget(from: Shape, to: Shape): string {
    const target = to.map((dim, i) => (typeof dim === "number" ? dim : from[i] !== undefined && equal(dim, from[i]!) ? 0 : -1));
    return target.filter(dim => dim === -1).length <= 1 ? this.ints(target) : this.dims(to);
  }

  /** A shape as an int64 vector: a constant if all dims are numbers, else an input that the session computes from the feeds. */
  dims(shape: Shape): string {
    if (shape.every(dim => typeof dim === "number")) return this.ints(shape);
    return this.#fed(shape);
  }

  /** Checks the whole and closes it. Throws GraphError for an op outside `ops` or a symbol that no input binds. */
  finish(ops: ReadonlySet<string>): OnnxModel {
    for (const { name, value } of this.#graph.outputs)
      if (this.name(value) !== name) this.#push("Identity", [this.name(value)], [name], {}, "");
    const census = new Map<string, number>();
    for (const node of this.#allNodes) {
      const op = node.domain ? `${node.domain}:${node.opType}` : node.opType;
      if (!ops.has(op)) throw new GraphError(node.name, op, `one of ${[...ops].join(", ")}`, op);
      census.set(op, (census.get(op) ?? 0) + 1);
    }
    this.#requireBoundSymbols();
    const files = [...new Set([...this.#initializers.values()].map(({ stored }) => stored.file))];
    const shapeInputs = [...this.#shapeInputs.values()];
    return {
      graph: this.#graph,
      relaid: [...this.#relaid.values()],
      shapeInputs,
      conditionInputs: [...this.#conditions.values()],
      files,
      census,
      nodes: this.#inFileOrder(),
      shapes: this.#shapes,
      bytes: locations => this.#serialise(files, locations),
    };
  }

  /** An int64 vector that the session computes from the feeds. */
  #fed(dims: Shape): string {
    const name = `shape[${dims.map(dimName).join(",")}]`;
    this.#shapeInputs.set(name, { name, dims });
    return name;
  }

  #push(
    op: string,
    inputs: readonly string[],
    outputs: string[],
    attributes: Readonly<Record<string, AttributeValue>>,
    domain: string,
  ): void {
    const attribute = Object.entries(attributes).map(([name, value]) => encodeAttribute(name, value));
    const name = `${outputs[0]}/${op}`;
    const input = op === "Reshape" && this.#graph.inOrder ? [inputs[0]!, this.#fedTarget(inputs[1]!)] : [...inputs];
    const node = create(NodeProtoSchema, { name, opType: op, domain, input, output: outputs, attribute });
    this.#scope.nodes.push(node);
    this.#allNodes.push(node);
  }

  /** A constant of `ints` as an input, so that shape inference does not come to know it (see `#serialise`). */
  #fedTarget(name: string): string {
    const constant = this.#inline.get(name);
    return constant ? this.#fed([...new BigInt64Array(constant.rawData.slice().buffer)].map(Number)) : name;
  }

  /** Nodes added by `build` as a graph of their own, which sees the names of the whole. */
  #branch(build: () => string, shape: Shape): GraphProto {
    const outer = this.#scope;
    this.#scope = { nodes: [], values: new Map() };
    try {
      const result = build();
      const { nodes, values } = this.#scope;
      values.delete(result);
      return create(GraphProtoSchema, {
        name: `branch.${result}`,
        node: nodes,
        output: [valueInfo(result, shape, "float32")],
        valueInfo: [...values.values()],
      });
    } finally {
      this.#scope = outer;
    }
  }

  #external(name: string, stored: StoredTensor, shape: readonly number[]): string {
    this.#initializers.set(name, { stored, shape });
    return name;
  }

  #declare(name: string, shape: Shape, dtype: DType): string {
    this.#scope.values.set(name, valueInfo(name, shape, dtype));
    this.#shapes.set(name, shape);
    return name;
  }

  #constant(name: string, dataType: TensorProto_DataType, shape: readonly number[], rawData: Uint8Array): string {
    if (rawData.length > maxInlineBytes)
      throw new GraphError(name.slice(0, 80), "constant", `at most ${maxInlineBytes} bytes inline`, `${rawData.length}`);
    if (!this.#inline.has(name)) this.#inline.set(name, create(TensorProtoSchema, { name, dataType, dims: shape.map(BigInt), rawData }));
    return name;
  }

  #requireBoundSymbols(): void {
    const bound = this.#graph.symbols();
    for (const value of [...this.#graph.inputs, ...this.#graph.nodes.flatMap(node => node.outputs)])
      for (const name of value.shape.flatMap(symbolsOf))
        if (!bound.has(name)) throw new GraphError(value.name, "shape", `symbols [${[...bound.keys()]}]`, name);
  }

  /**
   * ONNX Runtime walks back from the outputs, at each node first to the input whose maker has the highest index: so, from the last
   * index to the first, what was made first runs first. Left alone it runs the whole backward chain before the gradients beside it.
   */
  #inFileOrder(): readonly NodeProto[] {
    return this.#graph.inOrder ? this.#whole.nodes.toReversed() : this.#whole.nodes;
  }

  /**
   * Of a graph with gradients no shape is told. ONNX Runtime plans one buffer for values of equal shapes that live one after the other,
   * however far apart, and holds it in between: twice to four times of what is needed, where each size comes by on the way there and
   * back. Where it knows no shape, each value has a buffer of its own, freed after its last use.
   */
  #serialise(files: readonly string[], locations: readonly string[]): Uint8Array {
    const location = new Map(files.map((file, i) => [file, locations[i]!]));
    const outputs = new Set(this.#graph.outputs.map(output => output.name));
    const told = (shape: Shape): Shape | null => (this.#graph.inOrder ? null : shape);
    const graph = create(GraphProtoSchema, {
      name: this.#graph.name,
      node: [...this.#inFileOrder()],
      initializer: [
        ...[...this.#initializers].map(([name, { stored, shape }]) => externalTensor(name, stored, shape, location.get(stored.file)!)),
        ...[...this.#relaid].map(([name, weight], i) => relaidTensor(name, weight, locations[files.length + i]!)),
        ...this.#inline.values(),
      ],
      input: [
        ...this.#graph.inputs.map(input => valueInfo(input.name, told(input.shape), input.dtype)),
        ...[...this.#shapeInputs.values()].map(({ name, dims }) => valueInfo(name, told([dims.length]), "int64")),
        ...[...this.#conditions.values()].map(({ name }) => valueInfo(name, [], "bool")),
      ],
      output: this.#graph.outputs.map(({ name, value }) => valueInfo(name, value.shape, value.dtype)),
      valueInfo: this.#graph.inOrder ? [] : [...this.#whole.values.values()].filter(value => !outputs.has(value.name)),
    });
    const opsetImport = [
      { domain: "", version: BigInt(opset) },
      { domain: microsoft, version: 1n },
      ...(this.#allNodes.some(({ domain }) => domain === blockedChannels) ? [{ domain: blockedChannels, version: 1n }] : []),
    ];
    return toBinary(
      ModelProtoSchema,
      create(ModelProtoSchema, { irVersion: BigInt(irVersion), producerName: "atelier", opsetImport, graph }),
    );
  }
}

function externalTensor(name: string, stored: StoredTensor, shape: readonly number[], location: string): TensorProto {
  const entries = { location, offset: String(stored.offset), length: String(stored.byteLength) };
  return create(TensorProtoSchema, {
    name,
    dataType: TensorProto_DataType.FLOAT,
    dims: shape.map(BigInt),
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries(entries).map(([key, value]) => ({ key, value })),
  });
}

function relaidTensor(name: string, { stored, shape: [out, channels, ...kernel], layout }: RelaidWeight, location: string): TensorProto {
  const shape = layout.flipped ? [channels!, out!, ...kernel] : [out!, channels!, ...kernel];
  return externalTensor(name, { ...stored, offset: 0 }, shape, location);
}

/** A weight's shape, which has no symbols. */
function numbers(weight: Value): readonly number[] {
  return weight.shape.map(dim => {
    if (typeof dim !== "number") throw new GraphError(weight.name, "weight", "dims that are numbers", dim.name);
    return dim;
  });
}

function encodeAttribute(name: string, value: AttributeValue): AttributeProto {
  if (typeof value === "number") return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INT, i: BigInt(value) });
  if (typeof value === "string")
    return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.STRING, s: new TextEncoder().encode(value) });
  if ("node" in value) return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.GRAPH, g: value });
  if ("float" in value) return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.FLOAT, f: value.float });
  return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INTS, ints: value.map(BigInt) });
}

const elementTypes = {
  float32: TensorProto_DataType.FLOAT,
  int64: TensorProto_DataType.INT64,
  bool: TensorProto_DataType.BOOL,
} satisfies Record<DType | "bool", TensorProto_DataType>;

/** @param shape null: not even how many dims it has */
function valueInfo(name: string, shape: Shape | null, dtype: keyof typeof elementTypes): ValueInfoProto {
  const dim = shape?.map((size: Dim) =>
    typeof size === "number"
      ? { value: { case: "dimValue" as const, value: BigInt(size) } }
      : { value: { case: "dimParam" as const, value: size.name } },
  );
  return create(ValueInfoProtoSchema, {
    name,
    type: { value: { case: "tensorType", value: { elemType: elementTypes[dtype], ...(dim && { shape: { dim } }) } } },
  });
}
