/** Where unit Gaussian noise comes from. */
import type { NoiseSource } from "../../shared/picture.ts";
import type { NoiseGenerator } from "./generator.ts";
import { mt19937Noise } from "./mt19937.ts";
import { philoxNoise } from "./philox.ts";

const generators = { philox: philoxNoise, mt19937: mt19937Noise } as const satisfies Record<
  NoiseSource,
  (seed: bigint | number) => NoiseGenerator
>;

/** @param seed 0 .. 2^64 - 1; a number up to 2^53 - 1 is exact. `mt19937` looks at the low 32 bits only. */
export function noiseSource(kind: NoiseSource, seed: bigint | number): NoiseGenerator {
  return generators[kind](seed);
}
