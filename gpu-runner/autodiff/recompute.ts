/** Parts of a forward pass, computed once more when their gradients are due. */
import type { Graph, Node, Value } from "../graph/ir.ts";
import type { OpName } from "../graph/ops.ts";
import * as ops from "../graph/ops.ts";

/** Ops whose results are kept all the same: attention takes time with the square of what its result takes of memory. */
export const keptOps: ReadonlySet<OpName> = new Set(["attention"]);

/**
 * The same nodes once more, in their order, but for the results of `keptOps`. What they read of other nodes waits for `until`: by data, so that no earlier place in the
 * order is possible, and nothing can take them for the first ones.
 */
export function computeAgain(graph: Graph, segment: readonly Node[], until: readonly Value[]): readonly Node[] {
  const again = new Map<Value, Value>();
  let waiting: Value | null = null;
  const read = (value: Value): Value => {
    if (value.source !== "node") return value;
    const found = again.get(value);
    if (found) return found;
    // One waits for all, and the others for that one.
    const ready = ops.after(value, waiting ? [waiting] : until);
    waiting ??= ready;
    again.set(value, ready);
    return ready;
  };
  return segment.map(node => {
    const inputs = node.inputs.map(read);
    if (keptOps.has(node.op)) return { ...node, inputs, outputs: node.outputs.map(read) };
    const shapes = node.outputs.map(({ shape }) => shape);
    const outputs = graph.add(node.op, inputs, node.attributes, shapes);
    node.outputs.forEach((output, i) => {
      again.set(output, outputs[i]!);
    });
    return graph.nodes.at(-1)!;
  });
}

/** Takes away of `nodes` those that neither another node nor an output reads, such as the end of a part, which its gradients do not need. */
export function dropUnread(graph: Graph, nodes: ReadonlySet<Node>): void {
  const read = new Set(graph.outputs.map(({ value }) => value));
  const kept = graph.nodes.toReversed().filter(node => {
    if (nodes.has(node) && !node.outputs.some(output => read.has(output))) return false;
    for (const input of node.inputs) read.add(input);
    return true;
  });
  graph.nodes.splice(0, graph.nodes.length, ...kept.toReversed());
}
