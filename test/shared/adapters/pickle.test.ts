import { expect, test } from "vitest";
import { flatTensors, PickleTensor, type PickleValue } from "../../../shared/adapters/pickle.ts";

const tensor = () => new PickleTensor({ dtype: "F32", key: "0", elements: 1 }, 0, [1]);

test("tensors are named by the keys and positions that lead to them, the nearest first", () => {
  const deep = new Map<string, PickleValue>([["net", [tensor(), new Map([["weight", tensor()]])]]]);
  const names = [
    ...flatTensors(
      new Map<string, PickleValue>([
        ["nested", deep],
        ["top", tensor()],
      ]),
    ),
  ].map(([name]) => name);
  expect(names).toEqual(["top", "nested.net.0", "nested.net.1.weight"]);
});

test("a small file whose lists are shared many times is walked within a second, or refused", () => {
  const shared = (length: number): PickleValue => Array.from({ length }, () => inner);
  const inner: PickleValue = Array.from({ length: 440 }, () => []);
  const began = performance.now();
  expect([...flatTensors(new Map([["values", shared(440)]]))]).toEqual([]);
  expect(() => [...flatTensors(new Map([["values", shared(500)]]))]).toThrow("values without end");
  expect(performance.now() - began).toBeLessThan(1000);
});
