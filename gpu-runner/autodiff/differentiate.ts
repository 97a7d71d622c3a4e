/**
 * Reverse mode on the graph (Griewank and Walther 2008): a graph becomes one that also computes the gradients of its outputs,
 * weighted by cotangents that are fed, in chosen inputs. Rules emit ordinary ops; only what leads to a wanted input is built.
 */

import { copyGraph, keepOutputs } from "../graph/copy.ts";
import { evaluate, type Shape, type Sizes } from "../graph/dims.ts";
import { type Graph, GraphError, type Node, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import { gradientThunks } from "./rules.ts";

/** The input that holds the cotangent of an output, of its shape. */
export function cotangentName(output: string): string {
  return `cotangent.${output}`;
}

/** The output that holds the gradient in an input, of its shape. */
export function gradientName(input: string): string {
  return `gradient.${input}`;
}

/** The same graph with numbers for dims. Throws where a symbol has no size. */
export function bindSizes(graph: Graph, sizes: Sizes): Graph {
  const { graph: bound, values } = copyGraph(graph, shape => shape.map(dim => evaluate(dim, sizes)));
  keepOutputs(graph, bound, values);
  return bound;
}

/**
 * A graph of numeric dims with its inputs and outputs kept, an input `cotangent.<output>` for each output of `of`, and as outputs
 * `gradient.<input>` the gradients of the sum over outputs of <output, cotangent> in the inputs of `wrt`.
 * Throws GraphError for a name that is none and for a symbolic dim.
 */
export function differentiate(source: Graph, { of, wrt }: { of: readonly string[]; wrt: readonly string[] }): Graph {
  const { graph, values } = copyGraph(source, shape => requireNumbers(source, shape), { inOrder: true });
  keepOutputs(source, graph, values);
  const inputs = wrt.map(name =>
    found(
      graph,
      name,
      "input",
      graph.inputs.find(input => input.name === name),
    ),
  );
  const gradients = new Map<Value, Value>();
  const accumulate = (value: Value, gradient: Value): void => {
    const before = gradients.get(value);
    gradients.set(value, before ? ops.add(before, gradient) : gradient);
  };
  const forward = [...graph.nodes];
  const reaching = dependants(forward, inputs);
  for (const name of of) {
    const output = found(graph, name, "output", graph.outputs.find(candidate => candidate.name === name)?.value);
    const cotangent = graph.input(cotangentName(name), output.shape);
    if (reaching.has(output)) accumulate(output, cotangent);
  }
  for (const node of forward.toReversed()) {
    const wanted = node.inputs.map(input => reaching.has(input));
    const received = node.outputs.map(output => gradients.get(output) ?? null);
    if (!wanted.includes(true) || received.every(gradient => gradient === null)) continue;
    gradientThunks(node, received, wanted).forEach((thunk, i) => {
      const gradient = wanted[i] ? thunk() : null;
      if (gradient) accumulate(node.inputs[i]!, gradient);
    });
  }
  // An input that no output depends on has gradient 0.
  for (const input of inputs) graph.output(gradientName(input.name), gradients.get(input) ?? ops.scale(input, 0));
  return graph;
}

function requireNumbers(graph: Graph, shape: Shape): readonly number[] {
  return shape.map(dim => {
    if (typeof dim !== "number") throw new GraphError(graph.name, "differentiate", "dims that are numbers (see bindSizes)", dim.name);
    return dim;
  });
}

function found(graph: Graph, name: string, kind: "input" | "output", value: Value | undefined): Value {
  if (!value) throw new GraphError(graph.name, "differentiate", `an ${kind} of the graph`, name);
  return value;
}

/** The values that depend on any of `inputs`, these included. */
function dependants(nodes: readonly Node[], inputs: readonly Value[]): ReadonlySet<Value> {
  const reached = new Set(inputs);
  for (const node of nodes) if (node.inputs.some(input => reached.has(input))) for (const output of node.outputs) reached.add(output);
  return reached;
}
