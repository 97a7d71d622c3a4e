/** Copies of graphs, as the first step of their transformations. */
import type { Shape } from "./dims.ts";
import { Graph, type Value } from "./ir.ts";

/** Inputs, weights and nodes of a graph in a new one, their shapes as `shapeOf` gives them; `values` leads from old to new. */
export function copyGraph(
  source: Graph,
  shapeOf: (shape: Shape) => readonly number[],
  { inOrder }: { inOrder: boolean } = source,
): { graph: Graph; values: ReadonlyMap<Value, Value> } {
  const graph = new Graph(source.name, { inOrder });
  const values = new Map<Value, Value>();
  for (const input of source.inputs) values.set(input, graph.input(input.name, shapeOf(input.shape), input.dtype));
  for (const weight of source.weights) values.set(weight, graph.weight(weight.stored!, shapeOf(weight.shape)));
  for (const node of source.nodes) {
    const inputs = node.inputs.map(input => values.get(input)!);
    const shapes = node.outputs.map(({ shape }) => shapeOf(shape));
    const outputs = graph.add(node.op, inputs, node.attributes, shapes);
    node.outputs.forEach((output, i) => {
      values.set(output, outputs[i]!);
    });
  }
  return { graph, values };
}

/** The outputs of a graph as those of its copy. */
export function keepOutputs(source: Graph, copy: Graph, values: ReadonlyMap<Value, Value>): void {
  for (const { name, value } of source.outputs) copy.output(name, values.get(value)!);
}
