/** The net that predicts LoRAs: its sizes, its graph and its tensors. Formulas and names: test/goldens/training/HYPER_LORA.md. */
import type { TensorF32, UnetBase } from "../../../components.ts";
import { symbol } from "../../../graph/dims.ts";
import { Graph, type Value } from "../../../graph/ir.ts";
import * as ops from "../../../graph/ops.ts";
import { lowRankInputs } from "../../../models/layers.ts";
import type { TrainedTensor } from "../../trained-tensors.ts";
import { pictureTensors } from "./pictures.ts";

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
  /** Channels between the two convolutions of the picture branch and after them; null: no such branch. */
  picture: readonly [number, number] | null;
}

/** Rule 16's sizes. */
export function standardShape(concepts: number, rank: number): HyperLoraShape {
  return { concepts, codeWidth: 64, placeWidth: 16, hiddenWidth: 256, inner: 32, rank, picture: [32, 64] };
}

/** The sizes of a net by its file's tensors. @throws RangeError that names a tensor which it lacks */
export function shapeOfNet(tensors: ReadonlyMap<string, TensorF32>): HyperLoraShape {
  const dims = (name: string): readonly number[] => {
    const found = tensors.get(name);
    if (!found) throw new RangeError(`${name}: expected it among the tensors of a net that predicts LoRAs, got none`);
    return found.shape;
  };
  const constant = [...tensors.keys()].find(name => name.startsWith("a0.")) ?? "a0";
  const [concepts = 0, codeWidth = 0] = dims("codes");
  const [inner = 0, rank = 0] = dims(constant);
  return {
    ...{ concepts, codeWidth, inner, rank },
    placeWidth: dims("roles")[1] ?? 0,
    hiddenWidth: dims("trunk.0.weight")[0] ?? 0,
    picture: tensors.has("picture.0.weight") ? [dims("picture.0.weight")[0] ?? 0, dims("picture.1.weight")[0] ?? 0] : null,
  };
}

/** An attention projection of the UNet. */
export interface Projection {
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
export function projectionsOf({ shapes }: UnetBase): Projection[] {
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
export function buildHyperLora(shape: HyperLoraShape, projections: readonly Projection[]): Graph {
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
export function trainedList(shape: HyperLoraShape, projections: readonly Projection[], latentChannels: number): TrainedTensor[] {
  const { concepts, codeWidth, placeWidth, hiddenWidth, inner, rank, picture } = shape;
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
    ...(picture ? pictureTensors(latentChannels, picture, codeWidth) : []),
  ];
  return all.map(([name, dims]) => ({ name, shape: dims, group: "main" }));
}

/** Inputs of the graph that are one trained tensor each. */
export const wholeInputs = ["trunk.0", "trunk.1", "head_a", "head_b"].flatMap(name => [`${name}.weight`, `${name}.bias`]);
