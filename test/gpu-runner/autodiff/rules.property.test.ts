/**
 * Every op over random shapes: ONNX Runtime computes what the float64 interpreter does, forward and backward, and the gradients are
 * the derivatives of what the interpreter computes.
 */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { cotangentName, differentiate, gradientName } from "../../../gpu-runner/autodiff/differentiate.ts";
import { Graph } from "../../../gpu-runner/graph/ir.ts";
import type { OpName } from "../../../gpu-runner/graph/ops.ts";
import { runGraph } from "../support/graph.ts";
import { type Feeds64, interpret } from "../support/interpreter.ts";
import { directionalDerivative, expectClose, randomTensor, toFloat32 } from "./derivatives.ts";
import { type Sample, samples } from "./samples.ts";

const drawn = { numRuns: 100, seed: 20261124 };
/** A session is slower than the interpreter at these sizes. */
const drawnSessions = { numRuns: 25, seed: 20261124 };

function graphOf({ inputs, build }: Sample): Graph {
  const graph = new Graph("sample");
  const values = Object.fromEntries(Object.entries(inputs).map(([name, shape]) => [name, graph.input(name, shape)]));
  [build(values)].flat().forEach((value, i) => {
    graph.output(`y${i}`, value);
  });
  return graph;
}

/** The graph with all its gradients, and random feeds of both. */
function prepared(op: string, sample: Sample, seed: number): { graph: Graph; backward: Graph; feeds: Feeds64; cotangents: Feeds64 } {
  const graph = graphOf(sample);
  expect(graph.nodes.map(node => node.op)).toContain(op);
  const of = graph.outputs.map(({ name }) => name);
  const backward = differentiate(graph, { of, wrt: Object.keys(sample.inputs) });
  const entries = Object.entries(sample.inputs);
  const feeds = Object.fromEntries(entries.map(([name, shape], i) => [name, randomTensor(shape, seed + i, sample)]));
  const cotangents = Object.fromEntries(
    graph.outputs.map(({ name, value }, i) => [cotangentName(name), randomTensor(value.shape as number[], seed - 1 - i)]),
  );
  return { graph, backward, feeds, cotangents };
}

describe.each(Object.entries(samples) as [OpName, fc.Arbitrary<Sample>][])("%s", (op, arbitrary) => {
  test("gradients are derivatives", () => {
    fc.assert(
      fc.property(arbitrary, fc.nat(), (sample, seed) => {
        const { graph, backward, feeds, cotangents } = prepared(op, sample, seed);
        const results = interpret(backward, { ...feeds, ...cotangents });
        for (const name of Object.keys(feeds)) {
          const gradient = results[gradientName(name)]!;
          expect(gradient.shape).toEqual(feeds[name]!.shape);
          const direction = randomTensor(gradient.shape, seed + 100);
          const parts = gradient.data.map((value, i) => value * direction.data[i]!);
          const got = parts.reduce((a, b) => a + b, 0);
          const want = directionalDerivative(graph, feeds, cotangents, name, direction);
          const scale = parts.reduce((a, b) => a + Math.abs(b), 0);
          expect(Math.abs(got - want), `${name}: ${got} against ${want}`).toBeLessThan(1e-6 * Math.max(Math.abs(want), scale / 10, 1e-3));
        }
      }),
      drawn,
    );
  });

  test("ONNX Runtime computes the same", async () => {
    await fc.assert(
      fc.asyncProperty(arbitrary, fc.nat(), async (sample, seed) => {
        const { backward, feeds, cotangents } = prepared(op, sample, seed);
        const all = { ...feeds, ...cotangents };
        const results = await runGraph(
          backward,
          Object.fromEntries(Object.entries(all).map(([name, tensor]) => [name, toFloat32(tensor)])),
        );
        for (const [name, want] of Object.entries(interpret(backward, all))) expectClose(name, results[name]!, want, 2e-5);
      }),
      drawnSessions,
    );
  });
});
