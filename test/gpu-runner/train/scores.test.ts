import { expect, test } from "vitest";
import { evenly } from "../../../gpu-runner/train/evaluate.ts";
import { bindingScore, gainScore, meanScore, priorScore, withoutToken } from "../../../gpu-runner/train/scores.ts";

const noisy = (level: number, places = 32) =>
  Array.from({ length: 8 }, (_, picture) => Array.from({ length: places }, (_, i) => level * (1 + 0.1 * Math.sin(picture * 7 + i * 3))));

test("gain, binding and prior are their formulas, inside deterministic intervals", () => {
  const pair = { base: noisy(1), adapted: noisy(0.9) };
  const gain = gainScore(pair, 4);
  expect(gain.value).toBeCloseTo(0.1, 9);
  expect(gain.low).toBeLessThanOrEqual(gain.value);
  expect(gain.high).toBeGreaterThanOrEqual(gain.value);
  expect(gainScore(pair, 4)).toEqual(gain);
  expect(bindingScore(pair, { base: noisy(1), adapted: noisy(0.96) }, 4).value).toBeCloseTo(0.06, 9);
  expect(priorScore({ base: noisy(2), adapted: noisy(2.04) }, 4).value).toBeCloseTo(1.02, 9);
});

test("the interval spans the mean's sampling error: of 0/1 pictures it is about 2 sqrt(p q / n) on either side", () => {
  const { value, low, high } = meanScore(
    Array.from({ length: 100 }, (_, i) => i % 2),
    1,
  );
  expect(value).toBe(0.5);
  expect(high - low).toBeGreaterThan(0.15);
  expect(high - low).toBeLessThan(0.25);
});

test("an untouched model gains nothing, with no width", () => {
  expect(gainScore({ base: noisy(1), adapted: noisy(1) }, 2)).toEqual({ value: 0, low: 0, high: 0 });
});

test("of more pictures than are wanted some of each part are taken", () => {
  expect(evenly([0, 1, 2, 3, 4, 5, 6, 7], 4)).toEqual([0, 2, 4, 6]);
  expect(evenly([0, 1, 2], 2)).toEqual([0, 1]);
  expect(evenly([0, 1], 4)).toEqual([0, 1]);
});

test("a caption without its token keeps its class once", () => {
  const request = { concepts: [{ token: "zxq", class_prompt: "toy" }] };
  expect(withoutToken("a photo of zxq toy", request)).toBe("a photo of toy");
  expect(withoutToken("a photo of zxq", request)).toBe("a photo of toy");
  expect(withoutToken("a photo of zxq", { concepts: [{ token: "zxq", class_prompt: null }] })).toBe("a photo of");
});
