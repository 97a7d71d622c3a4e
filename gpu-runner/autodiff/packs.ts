/**
 * Gradients side by side in few outputs. Each output of a run is copied into a buffer of its own, so hundreds of small ones cost
 * more than their bytes; and while a pack is joined, its members are held twice.
 */
import type { TensorF32 } from "../components.ts";
import { copyGraph } from "../graph/copy.ts";
import type { Graph } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";

/** 128 MB, unless so many elements or more are needed for `maxOutputs`. */
const packElements = 32e6;

/** Of a run, those that are no gradients included. */
const maxOutputs = 32;

interface Packed {
  name: string;
  shape: readonly number[];
  /** The output that holds it, and where in that it begins, in elements. */
  pack: string;
  offset: number;
}

/**
 * The same graph with those outputs whose names begin so (such as `gradient.`) in packs; `unpack` gives the results of a run under
 * the first names. Dims must be numbers. A pack takes gradients in the order in which they are computed: a run goes from one
 * output to the next, and would else come back for gradients whose activations had to be kept until then.
 */
export function packOutputs(
  source: Graph,
  prefix: string,
): { graph: Graph; unpack(results: Readonly<Record<string, TensorF32>>): Record<string, TensorF32> } {
  const { graph, values } = copyGraph(source, shape => shape as readonly number[]);
  const isPacked = ({ name }: { name: string }): boolean => name.startsWith(prefix);
  const rest = source.outputs.filter(output => !isPacked(output));
  for (const { name, value } of rest) graph.output(name, values.get(value)!);
  const places = new Map(source.nodes.flatMap(({ outputs }, place) => outputs.map(value => [value, place] as const)));
  const members = source.outputs
    .filter(isPacked)
    .map(({ name, value }) => ({ name, value, size: elements(value.shape as readonly number[]) }));
  members.sort((a, b) => (places.get(a.value) ?? -1) - (places.get(b.value) ?? -1));
  const packed = new Map<string, Packed>();
  for (const [i, pack] of inPacks(members, Math.max(maxOutputs - rest.length, 1)).entries()) {
    const output = `pack.${prefix}${i}`;
    let offset = 0;
    const parts = pack.map(({ name, value, size }) => {
      packed.set(name, { name, shape: value.shape as readonly number[], pack: output, offset });
      offset += size;
      return ops.reshape(values.get(value)!, [size]);
    });
    graph.output(output, parts.length === 1 ? parts[0]! : ops.concat(parts, 0));
  }
  return { graph, unpack: unpacker(source.outputs.flatMap(({ name }) => packed.get(name) ?? [])) };
}

/** Apart from where the graph is made, which would live on with it. */
function unpacker(packed: readonly Packed[]): (results: Readonly<Record<string, TensorF32>>) => Record<string, TensorF32> {
  return results => unpack(results, packed);
}

/** In the order given, at most so many packs, each as small as that allows; what is larger than a pack is one by itself. */
function inPacks<T extends { size: number }>(members: readonly T[], most: number): readonly (readonly T[])[] {
  for (let limit = packElements; ; limit *= 1.1) {
    const packs: T[][] = [];
    let filled = Number.POSITIVE_INFINITY;
    for (const member of members) {
      if (filled + member.size > limit) {
        packs.push([]);
        filled = 0;
      }
      packs.at(-1)!.push(member);
      filled += member.size;
    }
    if (packs.length <= most) return packs;
  }
}

function unpack(results: Readonly<Record<string, TensorF32>>, packed: readonly Packed[]): Record<string, TensorF32> {
  const packs = new Set(packed.map(({ pack }) => pack));
  const rest = Object.entries(results).filter(([name]) => !packs.has(name));
  const views = packed.map(({ name, shape, pack, offset }) => {
    const data = results[pack]!.data.subarray(offset, offset + elements(shape));
    return [name, { data, shape }] as const;
  });
  return Object.fromEntries([...rest, ...views]);
}

function elements(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}
