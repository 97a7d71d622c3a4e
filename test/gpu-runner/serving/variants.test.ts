import { expect, test } from "vitest";
import { Graph } from "../../../gpu-runner/graph/ir.ts";
import { Variants } from "../../../gpu-runner/serving/variants.ts";
import { type GraphSession, SessionCache } from "../../../gpu-runner/session.ts";

/** Sessions that note what is open. */
function recorded() {
  const open: string[] = [];
  const make = (key: string) => ({
    graph: () => new Graph(key),
    session: async (): Promise<GraphSession> => {
      open.push(key);
      return { run: async () => ({}), release: async () => void open.splice(open.indexOf(key), 1) };
    },
  });
  return { open, make };
}

test("the least recently used goes, and is released", async () => {
  const { open, make } = recorded();
  const variants = new Variants(new SessionCache(), 2);
  for (const key of ["a", "b", "a", "c"]) await variants.use(key, make(key), async ({ graph }) => expect(graph.name).toBe(key));
  expect(variants.keys()).toEqual(["a", "c"]);
  expect(open).toEqual(["a", "c"]);
  await variants.release();
  expect(open).toEqual([]);
  await expect(variants.use("a", make("a"), async () => {})).rejects.toThrow("expected a model in use");
});

test("what is in use stays, however many there are", async () => {
  const { open, make } = recorded();
  const variants = new Variants(new SessionCache(), 1);
  await variants.use("a", make("a"), async () => {
    await variants.use("b", make("b"), async () => {});
    await variants.use("c", make("c"), async () => {});
    expect(open).toContain("a");
  });
  expect(open).toHaveLength(1);
  await variants.release();
});

test("a making that fails leaves nothing", async () => {
  const { open, make } = recorded();
  const variants = new Variants(new SessionCache(), 2);
  const failing = { ...make("a"), session: () => Promise.reject(new Error("no memory")) };
  await expect(variants.use("a", failing, async () => {})).rejects.toThrow("no memory");
  expect(variants.keys()).toEqual([]);
  await variants.use("a", make("a"), async () => {});
  expect(open).toEqual(["a"]);
  await variants.release();
});
