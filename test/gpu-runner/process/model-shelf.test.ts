import fc from "fast-check";
import { expect, test } from "vitest";
import { ModelShelf } from "../../../gpu-runner/model-shelf.ts";

/** A shelf over models whose size is their name, and what happened on it. */
function newShelf(budget: number, failing = new Set<string>()) {
  const events: string[] = [];
  const held = new Set<string>();
  let most = 0;
  const shelf = new ModelShelf<string>({
    budget,
    estimate: Number,
    load: async path => {
      if (failing.has(path)) throw new Error(`${path} is broken`);
      held.add(path);
      most = Math.max(
        most,
        [...held].reduce((sum, each) => sum + Number(each), 0),
      );
      return { model: `model ${path}`, bytes: Number(path), release: async () => void held.delete(path) };
    },
    onChange: (event, hash) => events.push(`${event} ${hash}`),
  });
  return { shelf, events, held, most: () => most, use: (size: string) => shelf.use(`hash-${size}`, size) };
}

test("loads once, keeps what fits, and lets the least recently used go", async () => {
  const { shelf, events, use } = newShelf(100);
  for (const size of ["40", "50", "40", "30"]) {
    shelf.unpin();
    expect(await use(size)).toBe(`model ${size}`);
  }
  expect(events).toEqual(["loaded hash-40", "loaded hash-50", "released hash-50", "loaded hash-30"]);
  expect(shelf.resident()).toEqual(["hash-30", "hash-40"]);
});

test("a training's model stays, and what it takes beside is nobody else's", async () => {
  const { shelf, use, held } = newShelf(100);
  await use("40");
  shelf.hold({ hash: "hash-40", bytes: 40 });
  for (const size of ["10", "30", "20"]) {
    shelf.unpin();
    await use(size);
    expect([...held]).toEqual(["40", size]);
  }
  shelf.hold(null);
  shelf.unpin();
  await use("30");
  expect([...held]).toEqual(["40", "20", "30"]);
  shelf.unpin();
  await use("50");
  expect([...held]).toEqual(["20", "30", "50"]);
});

test("models of one batch stay together, also beyond the budget", async () => {
  const { shelf, use, held } = newShelf(100);
  await use("80");
  await use("90");
  expect([...held]).toEqual(["80", "90"]);
  shelf.unpin();
  await use("10");
  expect([...held]).toEqual(["90", "10"]);
});

test("a model that cannot be loaded fails by itself, and may be there the next time", async () => {
  const failing = new Set(["50"]);
  const { shelf, use } = newShelf(100, failing);
  await use("40");
  await expect(use("50")).rejects.toThrow("50 is broken");
  expect(shelf.resident()).toEqual(["hash-40"]);
  failing.clear();
  expect(await use("50")).toBe("model 50");
});

test("never more than the budget beside what is in use, whatever is asked for", async () => {
  const sizes = fc.array(fc.constantFrom("10", "20", "40", "60", "100"), { maxLength: 30 });
  await fc.assert(
    fc.asyncProperty(sizes, async asked => {
      const { shelf, use, held, most } = newShelf(100);
      for (const size of asked) {
        shelf.unpin();
        await use(size);
        expect(shelf.resident()[0]).toBe(`hash-${size}`);
        expect(shelf.resident().length).toBe(held.size);
      }
      expect(most()).toBeLessThanOrEqual(100);
    }),
  );
});
