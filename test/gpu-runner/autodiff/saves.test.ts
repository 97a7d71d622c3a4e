/** Each rule reads of its node exactly what the table of saved values says. */
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { gradientThunks } from "../../../gpu-runner/autodiff/rules.ts";
import { type Saved, saves } from "../../../gpu-runner/autodiff/saves.ts";
import { Graph, type Node } from "../../../gpu-runner/graph/ir.ts";
import type { OpName } from "../../../gpu-runner/graph/ops.ts";
import { type Sample, samples } from "./samples.ts";

/** What the gradient in one input of a node reads, as the nodes show that it adds to the graph. */
function readBy(node: Node, input: number, missing: number): Saved[] {
  const { graph } = node.outputs[0]!;
  const received = node.outputs.map(({ shape, name }, i) => (i === missing ? null : graph.input(`${input}.gradient.${name}`, shape)));
  const before = graph.nodes.length;
  const wanted = node.inputs.map((_, i) => i === input);
  gradientThunks(node, received, wanted)[input]!();
  const read = new Set(graph.nodes.slice(before).flatMap(({ inputs }) => inputs));
  return [
    ...node.inputs.flatMap((value, i) => (read.has(value) ? [i] : [])),
    ...(node.outputs.some(value => read.has(value)) ? (["outputs"] as const) : []),
  ];
}

function nodeOf(op: OpName, { inputs, build }: Sample): Node {
  const graph = new Graph("sample");
  build(Object.fromEntries(Object.entries(inputs).map(([name, shape]) => [name, graph.input(name, shape)])));
  return graph.nodes.find(node => node.op === op)!;
}

test.each(Object.entries(samples) as [OpName, fc.Arbitrary<Sample>][])("%s", (op, arbitrary) => {
  const table: readonly (readonly Saved[])[] = saves[op];
  const found = table.map(() => new Set<Saved>());
  fc.sample(arbitrary, { numRuns: 60, seed: 5 }).forEach((sample, run) => {
    const node = nodeOf(op, sample);
    // Of an op with several results, now and then one that nothing depends on.
    const missing = node.outputs.length > 1 && run % 2 === 1 ? 0 : -1;
    for (let input = 0; input < node.inputs.length; input++)
      for (const saved of readBy(node, input, missing)) found[Math.min(input, table.length - 1)]!.add(saved);
  });
  expect(found.map(set => [...set].sort())).toEqual(table.map(list => [...list].sort()));
});
