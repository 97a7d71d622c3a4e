/** Gradients of layers as the models build them, through ONNX Runtime against the float64 interpreter; and what is not built. */
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { bindSizes, cotangentName, differentiate, gradientName } from "../../../gpu-runner/autodiff/differentiate.ts";
import { packOutputs } from "../../../gpu-runner/autodiff/packs.ts";
import { symbol } from "../../../gpu-runner/graph/dims.ts";
import { Graph, GraphError } from "../../../gpu-runner/graph/ir.ts";
import * as ops from "../../../gpu-runner/graph/ops.ts";
import {
  fromTokens,
  groupNorm,
  layerNorm,
  linear,
  lowRankInputs,
  Place,
  resnetBlock,
  toTokens,
} from "../../../gpu-runner/models/layers.ts";
import { writeRandomWeights } from "../../../gpu-runner/weights/random-weights.ts";
import { type WeightSource, weightsOfFile } from "../../../gpu-runner/weights/weights.ts";
import { runGraph } from "../support/graph.ts";
import { type Feeds64, interpret } from "../support/interpreter.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { directionalDerivative, expectClose, randomTensor, toFloat32 } from "./derivatives.ts";

const attentions = ["attn1", "attn2"];
const trainedWeights = attentions.flatMap(name => ["to_q", "to_k", "to_v", "to_out.0"].map(part => `${name}.${part}.weight`));
const pairs = trainedWeights.map(lowRankInputs).flatMap(({ down, up }) => [down, up]);
const sizes = new Map([["B", 2], ["H", 3], ["W", 4], ["L", 5], ...trainedWeights.map((name): [string, number] => [`R.${name}`, 2])]);

/** A residual block, then a transformer block over its pixels: self and cross attention with low-rank pairs, gated feed-forward. */
function block(weights: WeightSource): Graph {
  const graph = new Graph("block");
  const [B, H, W, L] = ["B", "H", "W", "L"].map(symbol);
  const place = new Place(graph, weights, { names: new Set(trainedWeights), perItem: false });
  const time = ops.silu(graph.input("time", [B!, 6]));
  const text = graph.input("text", [B!, L!, 6]);
  const options = { out: 8, groups: 4, epsilon: 1e-5, activation: ops.silu, time };
  const h = resnetBlock(place.at("resnet"), graph.input("sample", [B!, 4, H!, W!]), options);
  let tokens = toTokens(groupNorm(place.at("norm"), h, 4, 1e-6));
  for (const name of attentions) {
    const x = layerNorm(place.at(`${name}_norm`), tokens, 1e-5);
    const source = name === "attn1" ? x : text;
    const at = place.at(name);
    const [query, key, value] = [linear(at.at("to_q"), x, 8), linear(at.at("to_k"), source, 8), linear(at.at("to_v"), source, 8)];
    const attended = ops.attention(query, key, value, { heads: 2, causal: false });
    tokens = ops.add(tokens, linear(at.at("to_out").at("0"), attended, 8));
  }
  const [hidden, gate] = ops.split(linear(place.at("ff.0"), layerNorm(place.at("ff_norm"), tokens, 1e-5), 32), 2, 2);
  tokens = ops.add(tokens, linear(place.at("ff.2"), ops.multiply(hidden!, ops.gelu(gate!)), 8));
  graph.output("y", ops.add(h, fromTokens(tokens, h)));
  return graph;
}

let graph: Graph;
let feeds: Feeds64;
let cotangents: Feeds64;

beforeEach(() => {
  const file = join(temporaryFolder(), "weights.safetensors");
  writeRandomWeights(file, block);
  graph = bindSizes(block(weightsOfFile(file)), sizes);
  const random = (shape: readonly unknown[], seed: number) => randomTensor(shape as number[], seed);
  feeds = Object.fromEntries(graph.inputs.map(({ name, shape }, i) => [name, random(shape, i)]));
  cotangents = { [cotangentName("y")]: random(graph.outputs[0]!.value.shape, 1000) };
});

describe("a residual and a transformer block", () => {
  test("gradients of the low-rank pairs and of every other input", async () => {
    const all = graph.inputs.map(({ name }) => name);
    const backward = differentiate(graph, { of: ["y"], wrt: all });
    const packed = packOutputs(backward, gradientName(""));
    const fed = Object.fromEntries(Object.entries({ ...feeds, ...cotangents }).map(([name, tensor]) => [name, toFloat32(tensor)]));
    const results = packed.unpack(await runGraph(packed.graph, fed));
    const exact = interpret(backward, { ...feeds, ...cotangents });
    expect(packed.graph.outputs.map(({ name }) => name)).toEqual(["y", "pack.gradient.0"]);
    expect(Object.keys(results)).toEqual(["y", ...all.map(gradientName)]);
    for (const [name, want] of Object.entries(exact)) expectClose(name, results[name]!, want, 5e-5);
    for (const name of ["sample", "time", "text", pairs[0]!, pairs.at(-1)!]) {
      const direction = randomTensor(feeds[name]!.shape, 77);
      const got = exact[gradientName(name)]!.data.reduce((sum, value, i) => sum + value * direction.data[i]!, 0);
      const want = directionalDerivative(graph, feeds, cotangents, name, direction);
      expect(Math.abs(got - want), name).toBeLessThan(1e-6 * Math.max(1, Math.abs(want)));
    }
  });

  test("activations computed again give the same gradients", async () => {
    const all = graph.inputs.map(({ name }) => name);
    const fed = { ...feeds, ...cotangents };
    const [kept, again] = [false, true].map(recompute => differentiate(graph, { of: ["y"], wrt: all, recompute }));
    expect(interpret(again!, fed)).toEqual(interpret(kept!, fed));
    expect(again!.nodes.filter(({ op }) => op === "after").length).toBeGreaterThan(kept!.nodes.filter(({ op }) => op === "after").length);
    const inFloats = Object.fromEntries(Object.entries(fed).map(([name, tensor]) => [name, toFloat32(tensor)]));
    const [want, got] = [await runGraph(kept!, inFloats), await runGraph(again!, inFloats)];
    for (const [name, { shape, data }] of Object.entries(want))
      expectClose(name, got[name]!, { shape, data: Float64Array.from(data) }, 1e-6);
  });

  test("nothing below the first trained layer is differentiated", () => {
    const added = (wrt: readonly string[]): string[] =>
      differentiate(graph, { of: ["y"], wrt })
        .nodes.slice(graph.nodes.length)
        .map(({ op }) => op);
    const [ofLast, ofFirst, ofAll] = [added(pairs.slice(-2)), added(pairs), added([...pairs, "sample"])];
    // The residual block's convolutions and the norm after it lie below every pair.
    expect(ofFirst).not.toContain("convInputGradient");
    expect(ofAll.filter(op => op === "convInputGradient")).toHaveLength(3);
    // The last projection lies above all attention: softmax is only computed again to go below it.
    expect(ofLast).not.toContain("softmax");
    expect(ofFirst.filter(op => op === "softmax")).toHaveLength(2);
    expect(ofLast.length).toBeLessThan(ofFirst.length / 3);
    // Frozen weights and biases get no gradients of their own.
    expect(ofAll).not.toContain("convWeightGradient");
  });
});

describe("attention too long for one chunk", () => {
  test("gradients are derivatives", () => {
    const long = new Graph("long");
    const names = ["query", "key", "value"];
    // Of one head more scores than a chunk holds, and of two heads therefore chunks of both kinds.
    const shape = [1, 1030, 2];
    const [query, key, value] = names.map(name => long.input(name, shape));
    long.output("y", ops.attention(query!, key!, value!, { heads: 2, causal: true }));
    const backward = differentiate(long, { of: ["y"], wrt: names });
    expect(backward.nodes.filter(({ op }) => op === "softmax")).toHaveLength(4);
    const fed = Object.fromEntries(names.map((name, i) => [name, randomTensor(shape, i)]));
    const cotangent = { [cotangentName("y")]: randomTensor(shape, 9) };
    const results = interpret(backward, { ...fed, ...cotangent });
    for (const name of names) {
      const direction = randomTensor(shape, 10);
      const got = results[gradientName(name)]!.data.reduce((sum, part, i) => sum + part * direction.data[i]!, 0);
      const want = directionalDerivative(long, fed, cotangent, name, direction);
      expect(Math.abs(got - want), name).toBeLessThan(1e-6 * Math.abs(want));
    }
  });
});

describe("asking for gradients", () => {
  test("in an input that the output does not depend on gives zeros", () => {
    const small = new Graph("small");
    const [x, other] = [small.input("x", [2, 3]), small.input("other", [4])];
    small.output("y", ops.silu(x));
    small.output("z", ops.silu(other));
    const backward = differentiate(small, { of: ["y"], wrt: ["x", "other"] });
    const results = interpret(backward, {
      x: randomTensor([2, 3], 1),
      other: randomTensor([4], 2),
      [cotangentName("y")]: randomTensor([2, 3], 3),
    });
    expect([...results[gradientName("other")]!.data].map(Math.abs)).toEqual([0, 0, 0, 0]);
  });

  test("by a name that is none, or over symbolic dims, is refused", () => {
    expect(() => differentiate(graph, { of: ["y"], wrt: ["nothing"] })).toThrow("expected an input of the graph, got nothing");
    expect(() => differentiate(graph, { of: ["nothing"], wrt: ["text"] })).toThrow("expected an output of the graph, got nothing");
    const open = new Graph("open");
    open.output("y", ops.silu(open.input("x", [symbol("B")])));
    expect(() => differentiate(open, { of: ["y"], wrt: ["x"] })).toThrow(GraphError);
    expect(() => differentiate(open, { of: ["y"], wrt: ["x"] })).toThrow("got B");
  });
});
