import { readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { symbol } from "../../gpu-runner/graph/dims.ts";
import { Graph } from "../../gpu-runner/graph/ir.ts";
import * as ops from "../../gpu-runner/graph/ops.ts";
import { createSession, type GraphSession, SessionCache } from "../../gpu-runner/session.ts";
import { runGraph, tensor, wave } from "./support/graph.ts";
import { temporaryFolder } from "./support/temporary.ts";

const [B, L] = [symbol("B"), symbol("L")];

function doubling(): Graph {
  const graph = new Graph("doubling");
  const x = graph.input("x", [B, L, 4]);
  graph.output("y", ops.add(x, graph.input("again", [B, L, 4])));
  return graph;
}

describe("feeds", () => {
  const x = wave([2, 3, 4]);

  test.each([
    ["missing", { x }, "feed at again: expected a tensor [B, L, 4], got none"],
    ["of another size", { x, again: wave([2, 5, 4]) }, "feed at again: expected [B, L, 4] = [2,3,4], got [2,5,4] with 40 elements"],
    ["of another rank", { x: wave([8, 3]), again: x }, "feed at x: expected [B, L, 4] = [8,3,4], got [8,3] with 24 elements"],
    ["with fewer elements than its shape", { x, again: { shape: [2, 3, 4], data: new Float32Array(5) } }, "got [2,3,4] with 5 elements"],
    ["empty", { x: wave([0, 3, 4]), again: x }, "feed at x: expected [B, L, 4], every dim at least 1, got [0,3,4]"],
  ])("one that is %s is refused by name", async (_, feeds, message) => {
    await expect(runGraph(doubling(), feeds)).rejects.toThrow(message);
  });
});

test("one session serves every batch, length and height, and leaves nothing in the cache folder", async () => {
  const graph = new Graph("sizes");
  const x = graph.input("x", [B, 4, symbol("H"), symbol("W")]);
  const [batch, , height, width] = x.shape;
  const turned = ops.transpose(ops.reshape(x, [batch!, 2, 2, height!, width!]), [0, 3, 4, 1, 2]);
  graph.output("y", ops.reshape(turned, [height!, batch!, width!, 4]));
  const cacheDir = temporaryFolder();
  const session = await createSession(graph, { provider: "cpu", cacheDir, threads: 1 });
  expect(readdirSync(join(cacheDir, "sessions"))).toEqual([]);
  for (const [b, h, w] of [
    [1, 1, 1],
    [2, 3, 5],
    [3, 8, 2],
    [1, 16, 16],
  ] as const) {
    const input = tensor([b, 4, h, w], i => i);
    const { y } = await session.run({ x: input });
    expect(y!.shape).toEqual([h, b, w, 4]);
    const pixels = h * w;
    const expected = Float32Array.from(
      y!.data,
      (_, i) => Math.floor(i / 4 / pixels) * 4 * pixels + (i % 4) * pixels + (Math.floor(i / 4) % pixels),
    );
    expect(y!.data).toEqual(expected);
  }
  await session.release();
});

test("denormal results are flushed to zero", async () => {
  const graph = new Graph("denormal");
  const x = graph.input("x", [B]);
  graph.output("y", ops.multiply(x, x));
  const { y } = await runGraph(graph, { x: tensor([2], i => (i === 0 ? 1e-20 : 2)) });
  expect([...y!.data]).toEqual([0, 4]);
});

describe("the session cache", () => {
  const fake = (released: string[], name: string): GraphSession => ({
    run: async () => ({}),
    release: async () => void released.push(name),
  });

  test("makes a session once per key and releases it with its last user", async () => {
    const cache = new SessionCache();
    const released: string[] = [];
    let made = 0;
    const make = async () => fake(released, `session ${++made}`);
    const [one, two, other] = [cache.acquire("a", make), cache.acquire("a", make), cache.acquire("b", make)];
    expect(await one.session).toBe(await two.session);
    expect(await other.session).not.toBe(await one.session);
    await one.release();
    expect(released).toEqual([]);
    await two.release();
    expect(released).toEqual(["session 1"]);
    await cache.acquire("a", make).session;
    expect(made).toBe(3);
  });

  test("does not keep a failure", async () => {
    const cache = new SessionCache();
    const failed = cache.acquire("a", () => Promise.reject(new Error("no memory")));
    await expect(failed.session).rejects.toThrow("no memory");
    await failed.release();
    const released: string[] = [];
    expect(await cache.acquire("a", async () => fake(released, "a")).session).toBeDefined();
  });
});
