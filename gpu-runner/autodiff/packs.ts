/**
 * Gradients side by side in few outputs. Each output of a run is copied into a buffer of its own, so hundreds of small ones cost
 * more than their bytes; a pack beyond 128 MB would be held twice for too long.
 */
import type { TensorF32 } from "../components.ts";
import { copyGraph } from "../graph/copy.ts";
import type { Graph, Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";

const maxPackElements = 2 ** 25;

interface Packed {
  name: string;
  shape: readonly number[];
  /** The output that holds it, and where in that it begins, in elements. */
  pack: string;
  offset: number;
}

/**
 * The same graph with those outputs whose names begin so (such as `gradient.`) in packs; `unpack` gives the results of a run under
 * the first names. Dims must be numbers.
 */
export function packOutputs(
  source: Graph,
  prefix: string,
): { graph: Graph; unpack(results: Readonly<Record<string, TensorF32>>): Record<string, TensorF32> } {
  const { graph, values } = copyGraph(source, shape => shape as readonly number[]);
  const packed: Packed[] = [];
  let members: Value[] = [];
  let [filled, count] = [0, 0];
  const packName = (): string => `pack.${prefix}${count}`;
  const close = (): void => {
    if (members.length === 0) return;
    graph.output(packName(), members.length === 1 ? members[0]! : ops.concat(members, 0));
    [members, filled] = [[], 0];
    count++;
  };
  for (const { name, value } of source.outputs) {
    const copy = values.get(value)!;
    if (!name.startsWith(prefix)) {
      graph.output(name, copy);
      continue;
    }
    const shape = copy.shape as readonly number[];
    const size = elements(shape);
    if (filled + size > maxPackElements) close();
    packed.push({ name, shape, pack: packName(), offset: filled });
    members.push(ops.reshape(copy, [size]));
    filled += size;
  }
  close();
  return { graph, unpack: results => unpack(results, packed) };
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
