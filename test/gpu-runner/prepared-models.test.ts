import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { symbol } from "../../gpu-runner/graph/dims.ts";
import { Graph } from "../../gpu-runner/graph/ir.ts";
import * as ops from "../../gpu-runner/graph/ops.ts";
import { createSession, type SessionOptions } from "../../gpu-runner/session.ts";
import { IN_USE_MS, trimDerived } from "../../gpu-runner/weights/derived-files.ts";
import { storeWeights, wave } from "./support/graph.ts";
import { temporaryFolder } from "./support/temporary.ts";

const width = 512;

/** A linear layer over a matrix: something for the optimiser to pack. */
function layers(name = "layers"): Graph {
  const graph = new Graph(name);
  const x = graph.input("x", [symbol("B"), width]);
  const { w } = storeWeights(graph, { w: wave([width, width]) });
  graph.output("y", ops.silu(ops.linear(ops.silu(x), w!, null)));
  return graph;
}

/** As for a model of gigabytes. */
function progressive(cacheDir: string, more: Partial<SessionOptions> = {}): SessionOptions {
  return { provider: "cpu", cacheDir, threads: 1, progressiveFrom: 0, ...more };
}

function prepared(cacheDir: string): string[] {
  const folder = join(cacheDir, "prepared");
  return existsSync(folder) ? readdirSync(folder).filter(name => !name.endsWith(".tmp")) : [];
}

async function untilPrepared(cacheDir: string, count = 1): Promise<void> {
  await expect.poll(() => prepared(cacheDir).length, { timeout: 20_000 }).toBe(count);
}

describe("a large graph", () => {
  const x = wave([2, width]);

  test("serves at once, changes over to its optimised form, and the next session starts from that", async () => {
    const cacheDir = temporaryFolder();
    const graph = layers();
    const session = await createSession(graph, progressive(cacheDir));
    const quick = (await session.run({ x })).y!;
    expect(prepared(cacheDir)).toEqual([]);
    await untilPrepared(cacheDir);
    await expect.poll(() => readdirSync(join(cacheDir, "sessions"))).toEqual([]);
    const optimised = (await session.run({ x })).y!;
    const difference = Math.max(...optimised.data.map((value, i) => Math.abs(value - quick.data[i]!)));
    // Sums of 512 products in another order.
    expect(difference / Math.max(...quick.data)).toBeLessThan(1e-6);
    await session.release();

    const next = await createSession(graph, progressive(cacheDir));
    expect((await next.run({ x })).y!.data).toEqual(optimised.data);
    await next.release();
    expect(prepared(cacheDir)).toHaveLength(1);
  });

  test("changes over between runs, not under one that waits, nor is it released under one", async () => {
    const cacheDir = temporaryFolder();
    const session = await createSession(layers(), progressive(cacheDir));
    await untilPrepared(cacheDir);
    await expect.poll(() => readdirSync(join(cacheDir, "sessions"))).toEqual([]);
    const runs = [session.run({ x }), session.run({ x }), session.run({ x })];
    const released = session.release();
    const [first, ...others] = (await Promise.all(runs)).map(({ y }) => y!.data);
    for (const other of others) expect(other).toEqual(first);
    await released;
  });

  test("starts anew where the optimised form is damaged", async () => {
    const cacheDir = temporaryFolder();
    const graph = layers();
    const first = await createSession(graph, progressive(cacheDir));
    await untilPrepared(cacheDir);
    await first.release();
    writeFileSync(join(cacheDir, "prepared", prepared(cacheDir)[0]!, "model.onnx"), "not a model");
    const second = await createSession(graph, progressive(cacheDir));
    expect((await second.run({ x })).y!.shape).toEqual([2, width]);
    await untilPrepared(cacheDir);
    await second.release();
  });

  test("that is released before it is prepared leaves nothing", async () => {
    const cacheDir = temporaryFolder();
    const session = await createSession(layers(), progressive(cacheDir));
    await session.release();
    expect(prepared(cacheDir)).toEqual([]);
    expect(readdirSync(join(cacheDir, "sessions"))).toEqual([]);
  });

  test("is kept on disk for as long as the budget allows, and runs on where it is removed", async () => {
    const cacheDir = temporaryFolder();
    const later = Date.now() + IN_USE_MS;
    const one = await createSession(layers("one"), progressive(cacheDir));
    await untilPrepared(cacheDir);
    const two = await createSession(layers("two"), progressive(cacheDir));
    await untilPrepared(cacheDir, 2);
    const [y] = [(await one.run({ x })).y!.data];
    trimDerived(cacheDir, 2 ** 30, later + 60_000);
    expect(prepared(cacheDir)).toHaveLength(2);
    trimDerived(cacheDir, 1, later + 60_000);
    expect(prepared(cacheDir)).toEqual([]);
    // Mapped weights outlive their file's name.
    expect((await one.run({ x })).y!.data).toEqual(y);
    await one.release();
    await two.release();
  });
});
