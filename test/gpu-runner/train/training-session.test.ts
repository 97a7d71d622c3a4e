/** Sessions by size: what they hold for their values is told, and what could never fit is refused with figures. */
import { expect, test } from "vitest";
import { cotangentName, gradientName } from "../../../gpu-runner/autodiff/differentiate.ts";
import { symbol } from "../../../gpu-runner/graph/dims.ts";
import { Graph } from "../../../gpu-runner/graph/ir.ts";
import * as ops from "../../../gpu-runner/graph/ops.ts";
import { requireMemory } from "../../../gpu-runner/train/room.ts";
import { TrainingSession } from "../../../gpu-runner/train/training-session.ts";
import { wave } from "../support/graph.ts";
import { temporaryFolder } from "../support/temporary.ts";

const widths = [8, 64, 8, 64, 8, 64, 8];

function layers(): Graph {
  const graph = new Graph("layers");
  let x = graph.input("x", [symbol("B"), widths[0]!]);
  for (const [i, width] of widths.slice(1).entries()) x = ops.silu(ops.matmul(x, graph.input(`w${i}`, [widths[i]!, width])));
  graph.output("y", x);
  return graph;
}

const wrt = widths.slice(1).map((_, i) => `w${i}`);

function feeds(batch: number) {
  const weights = wrt.map((name, i) => [name, wave([widths[i]!, widths[i + 1]!], i)]);
  return { x: wave([batch, 8]), [cotangentName("y")]: wave([batch, 8], 3), ...Object.fromEntries(weights) };
}

function sessionOf(recompute: boolean, held: number[]): TrainingSession {
  const options = {
    provider: "cpu",
    cacheDir: temporaryFolder(),
    threads: 1,
    recompute,
    onHeld: (bytes: number) => held.push(bytes),
  } as const;
  return new TrainingSession({ graph: layers(), outputs: ["y"], of: ["y"], wrt }, options);
}

const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);

test("what sessions hold grows with each size and mode, and is given back", async () => {
  const held: number[] = [];
  const session = sessionOf(false, held);
  for (const batch of [16, 16, 256]) await session.gradients(feeds(batch));
  await session.forward(feeds(256));
  expect(held).toHaveLength(3);
  const [small, large, forward] = held as [number, number, number];
  // What the gradients read: the input of each SiLU, and its result but for the last, which is the output.
  expect(large).toBeGreaterThan(4 * 256 * 2 * sum(widths.slice(1)));
  expect(large).toBeGreaterThan(8 * small);
  expect(forward).toBeLessThan(large / 3);
  await session.release();
  expect(sum(held)).toBe(0);
});

test("with recomputation it is less, and the gradients are the same to the bit", async () => {
  const [kept, again]: [number[], number[]] = [[], []];
  const sessions = [sessionOf(false, kept), sessionOf(true, again)];
  const [want, got] = [await sessions[0]!.gradients(feeds(256)), await sessions[1]!.gradients(feeds(256))];
  for (const name of wrt) expect(got[gradientName(name)], name).toEqual(want[gradientName(name)]);
  expect(again[0]).toBeLessThan(0.8 * kept[0]!);
  for (const session of sessions) await session.release();
});

test("a step that no machine of this size can hold is refused with figures", () => {
  expect(() => requireMemory(9e9, 8e9)).toThrow(
    "gradient_checkpointing: expected a step whose activations fit into the runner's 8.0 GB, got 9.0 GB",
  );
  expect(() => requireMemory(7e9, 8e9)).not.toThrow();
});
