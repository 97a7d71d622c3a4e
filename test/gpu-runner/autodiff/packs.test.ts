/** Few outputs for many gradients, each found again where it lies. */
import { expect, test } from "vitest";
import { packOutputs } from "../../../gpu-runner/autodiff/packs.ts";
import { Graph } from "../../../gpu-runner/graph/ir.ts";
import * as ops from "../../../gpu-runner/graph/ops.ts";
import { interpret } from "../support/interpreter.ts";
import { randomTensor, toFloat32 } from "./derivatives.ts";

/** Gradients of these sizes, computed in that order, and put out the other way round. */
function graphOf(sizes: readonly number[]): Graph {
  const graph = new Graph("packs");
  const values = sizes.map((size, i) => ops.scale(graph.input(`x${i}`, [size]), i + 1));
  graph.output("y", values[0]!);
  for (const [i, value] of [...values.entries()].reverse()) graph.output(`gradient.${i}`, value);
  return graph;
}

const packsOf = (graph: Graph): number[] =>
  packOutputs(graph, "gradient.").graph.outputs.flatMap(({ name, value }) => (name.startsWith("pack.") ? [value.shape[0] as number] : []));

test("results come back under their names, in their order", () => {
  const graph = graphOf([3, 5, 2]);
  const feeds = Object.fromEntries(graph.inputs.map(({ name, shape }, i) => [name, randomTensor(shape as number[], i)]));
  const packed = packOutputs(graph, "gradient.");
  const results = Object.entries(interpret(packed.graph, feeds)).map(([name, tensor]) => [name, toFloat32(tensor)]);
  const unpacked = packed.unpack(Object.fromEntries(results));
  const want = interpret(graph, feeds);
  expect(Object.keys(unpacked)).toEqual(Object.keys(want));
  for (const [name, tensor] of Object.entries(want)) {
    expect(unpacked[name]!.shape).toEqual(tensor.shape);
    expect([...unpacked[name]!.data], name).toEqual([...toFloat32(tensor).data]);
  }
});

test("a pack has at most 128 MB, in the order of computing, and what is larger is one by itself", () => {
  expect(packsOf(graphOf([20e6, 10e6, 3e6, 40e6, 1e6]))).toEqual([30e6, 3e6, 40e6, 1e6]);
});

test("there are at most 32 outputs, whatever their size", () => {
  // As many elements as SDXL's UNet has weights.
  const packs = packsOf(graphOf(Array(257).fill(1e7)));
  expect(packs.length).toBeLessThanOrEqual(31);
  expect(packs.length).toBeGreaterThan(27);
  expect(packs.reduce((a, b) => a + b, 0)).toBe(257e7);
});
