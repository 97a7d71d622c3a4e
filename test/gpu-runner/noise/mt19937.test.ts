import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { mt19937Noise } from "../../../gpu-runner/noise/mt19937.ts";
import { noiseSource } from "../../../gpu-runner/noise/noise-source.ts";
import { philoxNoise } from "../../../gpu-runner/noise/philox.ts";

describe("noise as torch draws it on the CPU", () => {
  // torch.manual_seed(0): torch.randn(3), then torch.randn(2); the reference cases in test/goldens hold the rest.
  test("small draws go on where the last pair broke off", () => {
    const draw = mt19937Noise(0);
    const values = [...draw(3), ...draw(2)];
    expect(values.map(value => Number(value.toFixed(4)))).toEqual([1.541, -0.2934, -2.1788, 0.5684, -1.0845]);
  });

  test("only the low 32 bits of a seed count", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.integer({ min: 1, max: 50 }), (seed, count) => {
        expect(mt19937Noise(seed)(count)).toEqual(mt19937Noise(seed & 0xffffffffn)(count));
      }),
    );
  });

  test("is standard normal, in blocks of 16 and in the rest", () => {
    const values = mt19937Noise(7)(100_003);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    expect(Math.abs(mean)).toBeLessThan(0.02);
    expect(Math.abs(variance - 1)).toBeLessThan(0.02);
  });
});

test("a noise source is found by its name", () => {
  expect(noiseSource("mt19937", 5)(20)).toEqual(mt19937Noise(5)(20));
  expect(noiseSource("philox", 5)(20)).toEqual(philoxNoise(5)(20));
});
