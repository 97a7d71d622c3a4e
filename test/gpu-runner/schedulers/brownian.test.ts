import { describe, expect, test } from "vitest";
import { philoxNoise } from "../../../gpu-runner/noise/philox.ts";
import { brownianNoise } from "../../../gpu-runner/schedulers/brownian.ts";

const size = 20_000;
const motion = (seed: number) => {
  const generator = philoxNoise(seed);
  return brownianNoise(() => generator(size));
};
const variance = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0) / values.length;
const covariance = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + value * b[i]!, 0) / a.length;
/** The increment itself, of which a motion gives the normalised one. */
const increment = (noise: Float32Array, from: number, to: number) => noise.map(value => value * Math.sqrt(Math.abs(to - from)));

describe("a Brownian motion", () => {
  test("has unit increments whichever way its times are asked for", () => {
    const noise = motion(1);
    for (const [from, to] of [
      [10, 5],
      [10, 2],
      [3, 7],
      [12, 1],
      [8, 8.001],
      [0.5, 0.7],
    ] as const) {
      expect(Math.abs(variance(noise(from, to)) - 1)).toBeLessThan(0.05);
    }
  });

  test("increments of neighbouring intervals add up", () => {
    const noise = motion(2);
    const whole = increment(noise(10, 2), 10, 2);
    const parts = [increment(noise(10, 6), 10, 6), increment(noise(6, 2), 6, 2)];
    for (let i = 0; i < size; i += 997) expect(parts[0]![i]! + parts[1]![i]!).toBeCloseTo(whole[i]!, 4);
  });

  test("increments of intervals apart are independent, of overlapping ones as far as they overlap", () => {
    const noise = motion(3);
    noise(10, 0);
    expect(Math.abs(covariance(noise(9, 7), noise(5, 3)))).toBeLessThan(0.03);
    // Half of each interval is shared.
    expect(covariance(noise(8, 4), noise(6, 2))).toBeCloseTo(0.5, 1);
  });

  test("is the same for the same interval, and refuses an empty one", () => {
    const noise = motion(4);
    expect(noise(4, 1)).toEqual(noise(4, 1));
    expect(noise(1, 4)).toEqual(noise(4, 1).map(value => -value));
    expect(() => noise(4, 4)).toThrow("expected an interval");
  });
});
