/** Attention's gradients by chunks of heads and queries, as scores of more than 4 MB have them. */
import * as fc from "fast-check";
import { expect, test } from "vitest";
import { gradientsInChunks } from "../../../gpu-runner/autodiff/attention.ts";
import { cotangentName, differentiate, gradientName } from "../../../gpu-runner/autodiff/differentiate.ts";
import { Graph, type NodeOf } from "../../../gpu-runner/graph/ir.ts";
import * as ops from "../../../gpu-runner/graph/ops.ts";
import { interpret } from "../support/interpreter.ts";
import { randomTensor } from "./derivatives.ts";

const names = ["query", "key", "value"];
const size = fc.integer({ min: 1, max: 7 });

function attentionOf(queries: readonly number[], keys: readonly number[], heads: number, causal: boolean): Graph {
  const graph = new Graph("attention");
  const [query, key, value] = names.map((name, i) => graph.input(name, i === 0 ? queries : keys));
  graph.output("y", ops.attention(query!, key!, value!, { heads, causal }));
  return graph;
}

test("chunks of any size add up to the gradients of the whole", () => {
  fc.assert(
    fc.property(
      size,
      size,
      size,
      fc.integer({ min: 1, max: 3 }),
      fc.boolean(),
      fc.integer({ min: 1, max: 60 }),
      (batch, length, others, heads, causal, limit) => {
        const [queries, keys] = [
          [batch, length, 2 * heads],
          [batch, causal ? length : others, 2 * heads],
        ];
        const graph = attentionOf(queries, keys, heads, causal);
        const cotangent = graph.input(cotangentName("y"), queries);
        gradientsInChunks(graph.nodes[0] as NodeOf<"attention">, cotangent, limit).forEach((thunk, i) => {
          graph.output(gradientName(names[i]!), thunk()!);
        });
        for (const { op, outputs } of graph.nodes) {
          const [items, headsAtOnce, rows, columns] = outputs[0]!.shape as number[];
          // One query of one head is the least that there is.
          if (op === "softmax" && headsAtOnce! * rows! > 1) expect(items! * headsAtOnce! * rows! * columns!).toBeLessThanOrEqual(limit);
        }
        const whole = differentiate(attentionOf(queries, keys, heads, causal), { of: ["y"], wrt: names });
        const shapes = [queries, keys, keys, queries];
        const feeds = Object.fromEntries([...names, cotangentName("y")].map((name, i) => [name, randomTensor(shapes[i]!, i)]));
        const [got, want] = [interpret(graph, feeds), interpret(whole, feeds)];
        for (const name of names.map(gradientName))
          want[name]!.data.forEach((value, i) => {
            expect(Math.abs(got[name]!.data[i]! - value), `${name}[${i}]`).toBeLessThan(1e-9);
          });
      },
    ),
    { numRuns: 100, seed: 20261124 },
  );
});
