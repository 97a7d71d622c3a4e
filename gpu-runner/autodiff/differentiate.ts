/**
 * Reverse mode on the graph (Griewank and Walther 2008): a graph becomes one that also computes the gradients of its outputs,
 * weighted by cotangents that are fed, in chosen inputs. Rules emit ordinary ops; only what leads to a wanted input is built.
 */

import { copyGraph, keepOutputs } from "../graph/copy.ts";
import { evaluate, type Shape, type Sizes } from "../graph/dims.ts";
import { type Graph, GraphError, type Node, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import { computeAgain, dropUnread } from "./recompute.ts";
import { gradientThunks } from "./rules.ts";
import { segmentsOf } from "./segments.ts";

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

export interface Wanted {
  /** Outputs whose cotangents are fed. */
  of: readonly string[];
  /** Inputs. */
  wrt: readonly string[];
  /** Whether activations are computed again for the gradients, part by part, instead of being kept; absent: false. */
  recompute?: boolean;
}

/**
 * A graph of numeric dims with its inputs and outputs kept, an input `cotangent.<output>` for each output of `of`, and as outputs
 * `gradient.<input>` the gradients of the sum over outputs of <output, cotangent> in the inputs of `wrt`.
 * Throws GraphError for a name that is none and for a symbolic dim.
 */
export function differentiate(source: Graph, { of, wrt, recompute = false }: Wanted): Graph {
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
  const forward = [...graph.nodes];
  const reaching = dependants(forward, inputs);
  const gradients = new Gradients();
  for (const name of of) {
    const output = found(graph, name, "output", graph.outputs.find(candidate => candidate.name === name)?.value);
    const cotangent = graph.input(cotangentName(name), output.shape);
    if (reaching.has(output)) gradients.add(output, cotangent);
  }
  const recomputed = recompute ? addRecomputed(graph, forward, { inputs, reaching, gradients }) : null;
  if (!recomputed) addGradients(forward, forward, reaching, gradients);
  // An input that no output depends on has gradient 0.
  for (const input of inputs) graph.output(gradientName(input.name), gradients.of(input) ?? ops.scale(input, 0));
  if (recomputed) dropUnread(graph, recomputed);
  return graph;
}

/** The gradients in values so far. */
class Gradients {
  readonly #all = new Map<Value, Value>();

  of(value: Value): Value | null {
    return this.#all.get(value) ?? null;
  }

  add(value: Value, gradient: Value): void {
    const before = this.of(value);
    this.#all.set(value, before ? ops.add(before, gradient) : gradient);
  }
}

/** Adds the gradients in what `nodes` read. @param present the same nodes, or those that compute the same once more */
function addGradients(nodes: readonly Node[], present: readonly Node[], reaching: ReadonlySet<Value>, gradients: Gradients): void {
  for (const [i, node] of [...nodes.entries()].reverse()) {
    const wanted = node.inputs.map(input => reaching.has(input));
    const received = node.outputs.map(output => gradients.of(output));
    if (!wanted.includes(true) || received.every(gradient => gradient === null)) continue;
    gradientThunks(present[i]!, received, wanted).forEach((thunk, input) => {
      const gradient = wanted[input] ? thunk() : null;
      if (gradient) gradients.add(node.inputs[input]!, gradient);
    });
  }
}

/**
 * Part by part from the end, each computed again first; the last is still there. A part waits for what all later ones have left:
 * the gradients that enter it, and those of trained inputs.
 * @returns what was added to compute parts again
 */
function addRecomputed(
  graph: Graph,
  forward: readonly Node[],
  { inputs, reaching, gradients }: { inputs: readonly Value[]; reaching: ReadonlySet<Value>; gradients: Gradients },
): ReadonlySet<Node> {
  const segments = segmentsOf(forward, reaching);
  const recomputed = new Set<Node>();
  let trained: readonly (Value | null)[] = inputs.map(input => gradients.of(input));
  for (const [i, segment] of [...segments.entries()].reverse()) {
    const entering = segment.flatMap(({ outputs }) => outputs.flatMap(output => gradients.of(output) ?? []));
    if (entering.length === 0) continue;
    const now = inputs.map(input => gradients.of(input));
    const left = now.flatMap((gradient, input) => (gradient && gradient !== trained[input] ? gradient : []));
    trained = now;
    const count = graph.nodes.length;
    const present = i === segments.length - 1 ? segment : computeAgain(graph, segment, [...entering, ...left]);
    for (const node of graph.nodes.slice(count)) recomputed.add(node);
    addGradients(segment, present, reaching, gradients);
  }
  return recomputed;
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
