/**
 * A net that predicts the LoRA of a concept for every attention projection: HyperDreamBooth's fixed orthonormal outer factors (Ruiz et al.
 * 2023), conditioned as Text-to-LoRA (Charakorn et al. 2025). Formulas and names: test/goldens/training/HYPER_LORA.md.
 */
import { cotangentName, gradientName } from "../../autodiff/differentiate.ts";
import type { TensorF32, TrainableModel, UnetBase } from "../../components.ts";
import { symbol } from "../../graph/dims.ts";
import { Graph, type Value } from "../../graph/ir.ts";
import * as ops from "../../graph/ops.ts";
import { lowRankInputs } from "../../models/layers.ts";
import type { Feeds } from "../../session.ts";
import type { ResultTensor } from "../export/result.ts";
import { addInto } from "../flat-weights.ts";
import { normals, randomKey } from "../random.ts";
import type { StepBatch } from "../step.ts";
import { type TrainedTensor, TrainedTensors } from "../trained-tensors.ts";
import { type TrainingOptions, TrainingSession } from "../training-session.ts";
import { type AdapterPart, AdapterStep } from "./adapter-step.ts";

export interface HyperLoraShape {
  concepts: number;
  /** Of a concept's code. */
  codeWidth: number;
  /** Of the embeddings of role and block. */
  placeWidth: number;
  hiddenWidth: number;
  /** Between the fixed outer factors, K. */
  inner: number;
  rank: number;
}

/** Rule 16's sizes. */
export function standardShape(concepts: number, rank: number): HyperLoraShape {
  return { concepts, codeWidth: 64, placeWidth: 16, hiddenWidth: 256, inner: 32, rank };
}

/** An attention projection of the UNet. */
interface Projection {
  /** Such as `mid_block.attentions.0.transformer_blocks.0.attn1.to_q`. */
  name: string;
  in: number;
  out: number;
  role: number;
  block: number;
}

const kinds = ["to_q", "to_k", "to_v", "to_out.0"] as const;
const order = ["down_blocks", "mid_block", "up_blocks"] as const;

/** Blocks are counted down, middle, up; the projections of each in the order of their roles. */
function projectionsOf({ shapes }: UnetBase): Projection[] {
  const blocks = [
    ...new Set([...shapes.keys()].flatMap(name => /^(.+\.transformer_blocks\.\d+)\.attn1\.to_q\.weight$/.exec(name)?.[1] ?? [])),
  ];
  const rank = (name: string): number => order.findIndex(prefix => name.startsWith(prefix));
  const numbers = (name: string): number[] => (name.match(/\d+/g) ?? []).map(Number);
  const sorted = blocks.sort((a, b) => rank(a) - rank(b) || compare(numbers(a), numbers(b)));
  return sorted.flatMap((place, block) =>
    ["attn1", "attn2"].flatMap((attention, second) =>
      kinds.map((kind, i): Projection => {
        const name = `${place}.${attention}.${kind}`;
        const [out, width] = shapes.get(`${name}.weight`) as [number, number];
        return { name, in: width, out, role: 4 * second + i, block };
      }),
    ),
  );
}

function compare(a: readonly number[], b: readonly number[]): number {
  return a.map((value, i) => value - b[i]!).find(difference => difference !== 0) ?? 0;
}

/**
 * Inputs: `code` [B, code width], `roles` and `blocks` [projections, place width], the trunk's and heads' weights, `a0` [projections, K, R],
 * `p.<in>` [in, K] and `q.<out>` [out, K]. Outputs: each projection's pair per item, named as the UNet's inputs.
 */
function buildHyperLora(shape: HyperLoraShape, projections: readonly Projection[]): Graph {
  const { codeWidth, placeWidth, hiddenWidth, inner, rank } = shape;
  const graph = new Graph("hyper-lora");
  const batch = symbol("B");
  const count = projections.length;
  const layer = (name: string, x: Value, out: number): Value =>
    ops.linear(x, graph.input(`${name}.weight`, [out, x.shape.at(-1) as number]), graph.input(`${name}.bias`, [out]));
  const code = ops.expand(ops.reshape(graph.input("code", [batch, codeWidth]), [batch, 1, codeWidth]), [batch, count, codeWidth]);
  const places = ["roles", "blocks"].map(name =>
    ops.expand(ops.reshape(graph.input(name, [count, placeWidth]), [1, count, placeWidth]), [batch, count, placeWidth]),
  );
  const first = ops.silu(layer("trunk.0", ops.concat([code, ...places], 2), hiddenWidth));
  const h = ops.add(first, ops.silu(layer("trunk.1", first, hiddenWidth)));
  const a = ops.add(
    ops.reshape(layer("head_a", h, inner * rank), [batch, count, inner, rank]),
    ops.reshape(graph.input("a0", [count, inner, rank]), [1, count, inner, rank]),
  );
  const b = ops.reshape(layer("head_b", h, rank * inner), [batch, count, rank, inner]);
  const fixed = (name: string, width: number): Value =>
    graph.inputs.find(input => input.name === name) ?? graph.input(name, [width, inner]);
  projections.forEach(({ name, in: width, out }, i) => {
    const { down, up } = lowRankInputs(`${name}.weight`);
    const ownA = ops.transpose(ops.reshape(ops.slice(a, 1, i, i + 1), [batch, inner, rank]), [0, 2, 1]);
    graph.output(down, ops.linear(ownA, fixed(`p.${width}`, width), null));
    const ownB = ops.reshape(ops.slice(b, 1, i, i + 1), [batch, rank, inner]);
    graph.output(up, ops.transpose(ops.linear(ownB, fixed(`q.${out}`, out), null), [0, 2, 1]));
  });
  return graph;
}

/** What `codes`, `roles` and `blocks` hold beside the weights that the graph takes whole. */
function trainedList(shape: HyperLoraShape, projections: readonly Projection[]): TrainedTensor[] {
  const { concepts, codeWidth, placeWidth, hiddenWidth, inner, rank } = shape;
  const layer = (name: string, out: number, width: number): [string, readonly number[]][] => [
    [`${name}.weight`, [out, width]],
    [`${name}.bias`, [out]],
  ];
  const all: [string, readonly number[]][] = [
    ["codes", [concepts, codeWidth]],
    ["roles", [8, placeWidth]],
    ["blocks", [projections.at(-1)!.block + 1, placeWidth]],
    ...layer("trunk.0", hiddenWidth, codeWidth + 2 * placeWidth),
    ...layer("trunk.1", hiddenWidth, hiddenWidth),
    ...layer("head_a", inner * rank, hiddenWidth),
    ...layer("head_b", rank * inner, hiddenWidth),
    // Side by side, so that one input views them all.
    ...projections.map(({ name }): [string, readonly number[]] => [`a0.${name}`, [inner, rank]]),
  ];
  return all.map(([name, dims]) => ({ name, shape: dims, group: "main" }));
}

const wholeInputs = ["trunk.0", "trunk.1", "head_a", "head_b"].flatMap(name => [`${name}.weight`, `${name}.bias`]);

class HyperLoraPart implements AdapterPart {
  readonly tensors: TrainedTensors;
  readonly features;
  readonly wrt: readonly string[];
  readonly projections: readonly Projection[];
  readonly shape: HyperLoraShape;
  /** `p.<in>` [in, K] and `q.<out>`, transposed to [out, K]. */
  readonly fixed = new Map<string, TensorF32>();
  readonly #session: TrainingSession;

  constructor({ unet }: TrainableModel, shape: HyperLoraShape, seed: number, options: TrainingOptions) {
    this.shape = shape;
    this.projections = projectionsOf(unet);
    this.features = { lowRank: { names: new Set(this.projections.map(({ name }) => `${name}.weight`)), perItem: true } };
    this.tensors = new TrainedTensors(trainedList(shape, this.projections));
    this.#start(seed);
    const graph = buildHyperLora(shape, this.projections);
    this.wrt = graph.outputs.map(({ name }) => name);
    const wrt = ["code", "roles", "blocks", ...wholeInputs, "a0"];
    this.#session = new TrainingSession({ graph, outputs: this.wrt, of: this.wrt, wrt }, options);
  }

  forward({ concepts }: Pick<StepBatch, "concepts">): Promise<Record<string, TensorF32>> {
    return this.#session.forward(this.#feeds(concepts));
  }

  async backward({ concepts }: StepBatch, _texts: unknown, gradients: Readonly<Record<string, TensorF32>>): Promise<void> {
    const cotangents = Object.fromEntries(this.wrt.map(name => [cotangentName(name), gradients[name]!]));
    const results = await this.#session.gradients({ ...this.#feeds(concepts), ...cotangents });
    for (const name of wholeInputs) addInto(this.tensors.gradient(name).data, results[gradientName(name)]!.data);
    addInto(this.tensors.gradients.subarray(this.tensors.offset(this.#firstConstant)), results[gradientName("a0")]!.data);
    this.#addRows("codes", concepts, results[gradientName("code")]!);
    for (const [name, rows] of this.#places) this.#addRows(name, rows, results[gradientName(name)]!);
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  get #firstConstant(): string {
    return `a0.${this.projections[0]!.name}`;
  }

  /** The rows of roles and blocks that the projections read. */
  get #places(): readonly (readonly ["roles" | "blocks", readonly number[]])[] {
    return [
      ["roles", this.projections.map(({ role }) => role)],
      ["blocks", this.projections.map(({ block }) => block)],
    ];
  }

  #feeds(concepts: readonly number[]): Feeds {
    const { inner, rank } = this.shape;
    const whole = wholeInputs.map(name => [name, this.tensors.value(name)] as const);
    const places = this.#places.map(([name, rows]) => [name, this.#rows(name, rows)] as const);
    const count = this.projections.length;
    const from = this.tensors.offset(this.#firstConstant);
    const a0 = { data: this.tensors.values.subarray(from, from + count * inner * rank), shape: [count, inner, rank] };
    return { code: this.#rows("codes", concepts), ...Object.fromEntries([...whole, ...places, ...this.fixed]), a0 };
  }

  #rows(name: string, rows: readonly number[]): TensorF32 {
    const { data, shape } = this.tensors.value(name);
    const width = shape[1]!;
    const picked = new Float32Array(rows.length * width);
    rows.forEach((row, i) => {
      picked.set(data.subarray(row * width, (row + 1) * width), i * width);
    });
    return { data: picked, shape: [rows.length, width] };
  }

  #addRows(name: string, rows: readonly number[], { data, shape }: TensorF32): void {
    const width = shape[1]!;
    const into = this.tensors.gradient(name).data;
    rows.forEach((row, i) => {
      addInto(into.subarray(row * width), data.subarray(i * width, (i + 1) * width));
    });
  }

  /** Only the second head is zero: with both, no gradient would reach the trunk. */
  #start(seed: number): void {
    const { tensors, projections, shape } = this;
    tensors.list.forEach(({ name, shape: dims }, number) => {
      if (name.startsWith("head_b.") || name.endsWith(".bias")) return;
      const { data } = tensors.value(name);
      const deviation =
        name.endsWith(".weight") || name.startsWith("a0.") ? 1 / Math.sqrt(name.startsWith("a0.") ? dims[0]! : dims[1]!) : 1;
      data.set(normals(randomKey(seed, "start", number), data.length).map(value => deviation * value));
    });
    const widths = (side: "in" | "out"): number[] => [...new Set(projections.map(projection => projection[side]))];
    const draw = (name: string, width: number, part: number): void => {
      const values = normals(randomKey(seed, "start", tensors.list.length + part, width), width * shape.inner);
      this.fixed.set(name, { data: orthonormal(values, width, shape.inner), shape: [width, shape.inner] });
    };
    for (const width of widths("in")) draw(`p.${width}`, width, 0);
    for (const width of widths("out")) draw(`q.${width}`, width, 1);
  }
}

/** [rows, columns] with orthonormal columns, or rows where these are fewer (Gram and Schmidt, twice for rounding's sake). */
export function orthonormal(values: Float32Array, rows: number, columns: number): Float32Array {
  const wide = rows < columns;
  const [count, length] = wide ? [rows, columns] : [columns, rows];
  const index = (vector: number, i: number): number => (wide ? vector * columns + i : i * columns + vector);
  const vectors = Array.from({ length: count }, (_, vector) => Float64Array.from({ length }, (_, i) => values[index(vector, i)]!));
  vectors.forEach((vector, k) => {
    for (const earlier of [...vectors.slice(0, k), ...vectors.slice(0, k)]) {
      const share = vector.reduce((sum, value, i) => sum + value * earlier[i]!, 0);
      for (let i = 0; i < length; i++) vector[i]! -= share * earlier[i]!;
    }
    const norm = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
    for (let i = 0; i < length; i++) vector[i]! /= norm;
  });
  const out = new Float32Array(rows * columns);
  vectors.forEach((vector, k) => {
    for (let i = 0; i < length; i++) out[index(k, i)] = vector[i]!;
  });
  return out;
}

export class HyperLoraStep extends AdapterStep {
  readonly #part: HyperLoraPart;

  constructor(model: TrainableModel, part: HyperLoraPart, options: TrainingOptions) {
    super(model, part, options);
    this.#part = part;
  }

  /** Of a file of these names, with its fixed factors. Throws RangeError for a tensor that is missing or misshapen. */
  startFrom(values: ReadonlyMap<string, TensorF32>): void {
    const { tensors, fixed } = this.#part;
    const take = (name: string, length: number): Float32Array => {
      const found = values.get(name);
      if (found?.data.length !== length)
        throw new RangeError(`${name}: expected ${length} elements to start from, got [${found?.shape ?? "none"}]`);
      return found.data;
    };
    for (const { name } of tensors.list) tensors.value(name).data.set(take(name, tensors.value(name).data.length));
    for (const [name, { data, shape }] of fixed) {
      const [width, inner] = shape as [number, number];
      const own = take(name, data.length);
      const isQ = name.startsWith("q.");
      for (let i = 0; i < data.length; i++) data[i] = isQ ? own[(i % inner) * width + Math.floor(i / inner)]! : own[i]!;
    }
  }

  /** The LoRA of each concept, as diffusers names its tensors. */
  async predicted(): Promise<readonly (readonly ResultTensor[])[]> {
    const { shape, projections } = this.#part;
    const concepts = Array.from({ length: shape.concepts }, (_, i) => i);
    const pairs = await this.#part.forward({ concepts });
    return concepts.map(concept =>
      projections.flatMap(({ name }) => {
        const { down, up } = lowRankInputs(`${name}.weight`);
        return [
          { name: `unet.${name}.lora_A.weight`, ...item(pairs[down]!, concept) },
          { name: `unet.${name}.lora_B.weight`, ...item(pairs[up]!, concept) },
        ];
      }),
    );
  }
}

function item({ data, shape }: TensorF32, index: number): TensorF32 {
  const size = data.length / shape[0]!;
  return { data: data.slice(index * size, (index + 1) * size), shape: shape.slice(1) };
}

export function openHyperLoraStep(model: TrainableModel, shape: HyperLoraShape, seed: number, options: TrainingOptions): HyperLoraStep {
  return new HyperLoraStep(model, new HyperLoraPart(model, shape, seed, options), options);
}
