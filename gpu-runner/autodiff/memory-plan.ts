/** How much main memory a run of a graph with gradients takes at its worst, told from the emitted model before anything runs. */
import type { Shape } from "../graph/dims.ts";
import type { OnnxModel } from "../graph/onnx.ts";
import type { NodeProto } from "../graph/onnx_pb.js";

export interface MemoryPlan {
  /** Of what is computed, at the worst moment; what is fed and constants are not in it. */
  peakBytes: number;
  /** The node at which that is. */
  peakNode: string;
}

/** Ops whose result is their input under another shape. */
const views = new Set(["Reshape", "Identity"]);

/** How many reads of a buffer are still to come; what is an output is read after the end. */
interface Buffer {
  bytes: number;
  reads: number;
}

/** Each value has a buffer of its own from the node that makes it to the last that reads it. @throws RangeError where a dim is a symbol */
export function planMemory({ nodes, shapes, graph }: OnnxModel): MemoryPlan {
  const order = executionOrder(nodes);
  const reads = new Map<string, number>();
  for (const name of [...order.flatMap(({ input }) => input), ...graph.outputs.map(({ name }) => name)])
    reads.set(name, (reads.get(name) ?? 0) + 1);
  const buffers = new Map<string, Buffer>();
  let [held, peakBytes, peakNode] = [0, 0, ""];
  for (const { name, opType, input, output } of order) {
    const viewed = views.has(opType) ? buffers.get(input[0]!) : undefined;
    for (const value of output) {
      const buffer = viewed ?? { bytes: bytesOf(value, shapes.get(value)), reads: 0 };
      buffer.reads += reads.get(value) ?? 0;
      buffers.set(value, buffer);
      if (!viewed) held += buffer.bytes;
    }
    if (held > peakBytes) [peakBytes, peakNode] = [held, name];
    for (const value of input) {
      const buffer = buffers.get(value);
      if (buffer && --buffer.reads === 0) held -= buffer.bytes;
    }
    for (const value of output) if (!reads.has(value)) held -= buffers.get(value)!.bytes;
  }
  return { peakBytes, peakNode };
}

/**
 * The order in which ONNX Runtime runs nodes: back from what nobody reads, depth first, at each node to the input first whose maker
 * stands last in the file (`GraphViewer` and `Graph::ReverseDFSFrom` of its sources).
 */
export function executionOrder(nodes: readonly NodeProto[]): NodeProto[] {
  const makers = new Map(nodes.flatMap((node, index) => node.output.map(name => [name, index] as const)));
  const isRead = new Set(nodes.flatMap(node => node.input));
  const order: NodeProto[] = [];
  const visited = new Set<number>();
  const stack = nodes.flatMap((node, index) => (node.output.some(name => isRead.has(name)) ? [] : [{ index, isDone: false }]));
  for (let top = stack.pop(); top; top = stack.pop()) {
    const { index, isDone } = top;
    if (isDone) order.push(nodes[index]!);
    if (isDone || visited.has(index)) continue;
    visited.add(index);
    stack.push({ index, isDone: true });
    const before = new Set(nodes[index]!.input.flatMap(name => makers.get(name) ?? []));
    for (const maker of [...before].sort((a, b) => a - b)) if (!visited.has(maker)) stack.push({ index: maker, isDone: false });
  }
  return order;
}

function bytesOf(name: string, shape: Shape | undefined): number {
  return (shape ?? []).reduce<number>((bytes, dim) => {
    if (typeof dim !== "number") throw new RangeError(`${name}: expected dims that are numbers, got ${dim.name}`);
    return bytes * dim;
  }, 4);
}
