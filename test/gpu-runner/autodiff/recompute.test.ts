/** Activations computed again: the same gradients, of a graph that holds less at once and computes nothing in vain. */
import { expect, test } from "vitest";
import { cotangentName, differentiate, gradientName } from "../../../gpu-runner/autodiff/differentiate.ts";
import { segmentsOf } from "../../../gpu-runner/autodiff/segments.ts";
import { Graph, type Value } from "../../../gpu-runner/graph/ir.ts";
import * as ops from "../../../gpu-runner/graph/ops.ts";
import { interpret } from "../support/interpreter.ts";
import { randomTensor } from "./derivatives.ts";

/** As many layers as `widths` has, each a product with a trained matrix and a SiLU. */
function layers(widths: readonly number[]): Graph {
  const graph = new Graph("layers");
  let x = graph.input("x", [4, widths[0]!]);
  widths.forEach((width, i) => {
    x = ops.silu(ops.matmul(x, graph.input(`w${i}`, [width, widths[i + 1] ?? 1])));
  });
  graph.output("y", x);
  return graph;
}

const trainedOf = (graph: Graph): string[] => graph.inputs.map(({ name }) => name).filter(name => name.startsWith("w"));

test("gradients are those of kept activations, and no layer is computed more than twice", () => {
  const graph = layers([8, 8, 8, 8, 8, 8, 8, 8, 8]);
  const wrt = trainedOf(graph);
  const feeds = Object.fromEntries(graph.inputs.map(({ name, shape }, i) => [name, randomTensor(shape as number[], i)]));
  const all = { ...feeds, [cotangentName("y")]: randomTensor([4, 1], 99) };
  const [kept, again] = [false, true].map(recompute => differentiate(graph, { of: ["y"], wrt, recompute }));
  const [want, got] = [interpret(kept!, all), interpret(again!, all)];
  for (const name of wrt) expect(got[gradientName(name)], name).toEqual(want[gradientName(name)]);
  const products = (of: Graph): number => of.nodes.filter(({ op }) => op === "matmul").length;
  expect(products(again!)).toBeGreaterThan(products(kept!));
  expect(products(again!)).toBeLessThanOrEqual(products(kept!) + wrt.length);
  const read = new Set([...again!.nodes.flatMap(({ inputs }) => inputs), ...again!.outputs.map(({ value }) => value)]);
  for (const { name, outputs } of again!.nodes)
    expect(
      outputs.some(output => read.has(output)),
      name,
    ).toBe(true);
});

test("what is computed again waits for the gradients of everything after it", () => {
  const graph = differentiate(layers(Array(9).fill(8)), { of: ["y"], wrt: ["w0", "w1", "w8"], recompute: true });
  const below = new Map<Value, Set<Value>>();
  for (const { inputs, outputs } of graph.nodes) {
    const reached = new Set(inputs.flatMap(input => [input, ...(below.get(input) ?? [])]));
    for (const output of outputs) below.set(output, reached);
  }
  const barriers = graph.nodes.filter(({ op }) => op === "after");
  expect(barriers.length).toBeGreaterThan(1);
  const cotangent = graph.inputs.find(({ name }) => name === cotangentName("y"))!;
  for (const { outputs } of barriers) expect(below.get(outputs[0]!)!.has(cotangent)).toBe(true);
  const first = below.get(barriers.at(-1)!.outputs[0]!)!;
  expect(first.has(graph.outputs.find(({ name }) => name === gradientName("w8"))!.value)).toBe(true);
});

test("of all ways to cut, the one that holds least at its worst", () => {
  const { nodes, inputs } = layers([4, 64, 4, 32, 4, 64, 16]);
  const values = nodes.map(({ outputs }) => outputs[0]!);
  const size = ({ shape }: Value): number => (shape[0] as number) * (shape[1] as number);
  // Every node reads the one before; of a product and of a SiLU the gradient reads that too.
  const heldAtWorst = (starts: readonly number[]): number => {
    let [kept, worst] = [0, 0];
    starts.forEach((start, part) => {
      const end = starts[part + 1] ?? nodes.length;
      const inside = values.slice(start, Math.min(end, nodes.length - 1)).reduce((sum, value) => sum + size(value), 0);
      worst = Math.max(worst, kept + inside);
      kept += size(values[end - 1]!);
    });
    return worst;
  };
  const all = Array.from({ length: 2 ** (nodes.length - 1) }, (_, bits) => [
    0,
    ...nodes.flatMap((_, i) => (i > 0 && bits & (1 << (i - 1)) ? [i] : [])),
  ]);
  const parts = segmentsOf(nodes, new Set([...inputs, ...values]));
  expect(parts.flat()).toEqual(nodes);
  const best = Math.min(...all.map(heldAtWorst));
  expect(best).toBeLessThan(0.7 * heldAtWorst([0]));
  expect(heldAtWorst(parts.map(part => nodes.indexOf(part[0]!)))).toBeLessThanOrEqual(1.02 * best);
});

test("where nothing lies between, nothing is computed again", () => {
  const graph = layers([8]);
  const ops = (recompute: boolean): string[] => differentiate(graph, { of: ["y"], wrt: ["w0"], recompute }).nodes.map(({ op }) => op);
  expect(ops(true)).toEqual(ops(false));
});
