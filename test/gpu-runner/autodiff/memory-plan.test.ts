/** What a step with gradients takes is what its plan says: of values that are kept, and of those that are computed again. */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { cotangentName, differentiate, gradientName } from "../../../gpu-runner/autodiff/differentiate.ts";
import { executionOrder, planMemory } from "../../../gpu-runner/autodiff/memory-plan.ts";
import { packOutputs } from "../../../gpu-runner/autodiff/packs.ts";
import { symbol } from "../../../gpu-runner/graph/dims.ts";
import { emit, emitterFor } from "../../../gpu-runner/graph/emitter.ts";
import { Graph } from "../../../gpu-runner/graph/ir.ts";
import * as ops from "../../../gpu-runner/graph/ops.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { smallUnet } from "./small-unet.ts";

const script = fileURLToPath(new URL("peak-memory.ts", import.meta.url));
const answerSchema = z.object({ planned: z.number(), measured: z.number() });
const side = 96;

/** Of a run in a process of its own. */
function peakOf(isWhole: boolean, recompute: boolean): z.infer<typeof answerSchema> {
  const options = JSON.stringify({ side, isWhole, recompute });
  const answer = execFileSync(process.execPath, ["--no-warnings", script, temporaryFolder(), options], { encoding: "utf8" });
  return answerSchema.parse(JSON.parse(answer));
}

// Only Linux tells how much a process has held at once since a moment.
describe.runIf(process.platform === "linux").each([
  { trained: "low-rank pairs", isWhole: false },
  { trained: "every weight", isWhole: true },
])("$trained", ({ isWhole }) => {
  test("what is measured is what is planned, and recomputation takes less than half of it", () => {
    const [kept, again] = [peakOf(isWhole, false), peakOf(isWhole, true)];
    for (const { planned, measured } of [kept, again]) {
      expect(measured).toBeGreaterThan(0.9 * planned);
      // Beside what is computed: pages of weights, the operators' own scratch, and the copies of the outputs.
      expect(measured).toBeLessThan(1.1 * planned + 40e6);
    }
    expect(again.measured).toBeLessThan(0.5 * kept.measured);
    expect(again.planned).toBeLessThan(0.5 * kept.planned);
  });
});

describe("the order", () => {
  test("a trained weight's gradient is computed before the gradient that goes on below its layer", () => {
    const graph = new Graph("layers");
    let x = graph.input("x", [4, 8]);
    const wrt = [0, 1, 2, 3].map(i => `w${i}`);
    for (const name of wrt) x = ops.silu(ops.matmul(x, graph.input(name, [8, 8])));
    graph.output("y", x);
    const { graph: packed } = packOutputs(differentiate(graph, { of: ["y"], wrt }), gradientName(""));
    const order = executionOrder(emit(packed, emitterFor("cpu")).nodes).map(({ name }) => name);
    const backward = packed.nodes.filter(({ op }) => op === "matmul").slice(wrt.length);
    const places = backward.map(({ outputs }) => order.indexOf(`${outputs[0]!.name}/FusedMatMul`));
    // Each layer but the first has two products: below it, and its weight's.
    expect(places).toHaveLength(2 * wrt.length - 1);
    const ofWeights = backward.map(({ outputs }) => outputs[0]!.shape[0] === 8);
    const lastOfWeight = places.filter((_, i) => ofWeights[i]);
    const below = places.filter((_, i) => !ofWeights[i]);
    for (const [i, place] of below.slice(1).entries()) expect(lastOfWeight[i]).toBeLessThan(place);
  });
});

describe("the plan", () => {
  test("counts each value from its making to its last use, and views not at all", () => {
    const graph = new Graph("chain");
    const x = graph.input("x", [10, 10]);
    const first = ops.silu(x);
    const flat = ops.reshape(first, [100]);
    const second = ops.silu(flat);
    graph.output("y", ops.add(ops.silu(second), flat));
    // While the last SiLU is computed: the first value, the second, and its own; then the sum instead of the second.
    expect(planMemory(emit(graph, emitterFor("cpu"))).peakBytes).toBe(3 * 400);
  });

  test("wants numbers", () => {
    const graph = new Graph("open");
    graph.output("y", ops.silu(graph.input(cotangentName("x"), [symbol("B")])));
    expect(() => planMemory(emit(graph, emitterFor("cpu")))).toThrow("expected dims that are numbers, got B");
  });

  test("of a larger picture is about as much larger", () => {
    const planned = [32, 64].map(
      size => planMemory(emit(smallUnet(temporaryFolder(), { side: size, isWhole: false, recompute: true }), emitterFor("cpu"))).peakBytes,
    );
    expect(planned[1]! / planned[0]!).toBeGreaterThan(3);
    expect(planned[1]! / planned[0]!).toBeLessThan(5);
  });
});
