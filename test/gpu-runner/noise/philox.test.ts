import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { philoxNoise } from "../../../gpu-runner/noise/philox.ts";

const seeds = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });

describe("Philox noise", () => {
  test("an element depends on seed, draw and place only", () => {
    fc.assert(
      fc.property(seeds, fc.integer({ min: 1, max: 64 }), fc.integer({ min: 1, max: 64 }), (seed, a, b) => {
        const [short, long] = [philoxNoise(seed)(Math.min(a, b)), philoxNoise(seed)(Math.max(a, b))];
        expect(long.subarray(0, short.length)).toEqual(short);
      }),
    );
  });

  test("all 64 bits of the seed count, and draws differ", () => {
    const firsts = [0n, 1n, 2n ** 32n, 2n ** 63n].map(seed => philoxNoise(seed)(1)[0]);
    const generator = philoxNoise(0);
    expect(new Set([...firsts, generator(1)[0], generator(1)[0]]).size).toBe(5);
  });

  test("is standard normal", () => {
    const values = philoxNoise(1)(100_000);
    const moment = (power: number) => values.reduce((sum, value) => sum + value ** power, 0) / values.length;
    for (const [i, expected] of [0, 1, 0, 3].entries()) expect(moment(i + 1)).toBeCloseTo(expected, 1);
  });

  test.each([-1, 2n ** 64n])("refuses the seed %s", seed => {
    expect(() => philoxNoise(seed)).toThrow(RangeError);
  });
});
