/**
 * Counter-based random numbers of a training: each is a function of (seed, purpose, counters) and of nothing drawn before, so that going on
 * after an interruption needs the number of the step and no generator's state.
 */
import { philoxNoise } from "../noise/philox.ts";

/** What a number is drawn for: two purposes never share one. */
export const randomPurposes = [
  "order",
  "timestep",
  "noise",
  "offset",
  "caption",
  "flip",
  "picture",
  "condition",
  "bootstrap",
  "start",
] as const;
export type RandomPurpose = (typeof randomPurposes)[number];

const mask = (1n << 64n) - 1n;

/** 64 mixed bits of the seed, the purpose and the counters: SplitMix64's finaliser (Steele et al. 2014) over each in turn. */
export function randomKey(seed: number, purpose: RandomPurpose, ...counters: readonly number[]): bigint {
  return [seed, randomPurposes.indexOf(purpose), ...counters].reduce((key, counter) => mixed(key ^ BigInt(counter)), 0n);
}

function mixed(value: bigint): bigint {
  let z = (value + 0x9e3779b97f4a7c15n) & mask;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask;
  return z ^ (z >> 31n);
}

/** In [0, 1), of 53 bits. */
export function uniform(key: bigint): number {
  return Number(key >> 11n) / 2 ** 53;
}

/** Unit Gaussians. */
export function normals(key: bigint, count: number): Float32Array {
  return philoxNoise(key)(count);
}

/** 0 .. count - 1 in random order (Fisher and Yates), each place with a key of its own. */
export function shuffled(count: number, keyOf: (place: number) => bigint): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(uniform(keyOf(i)) * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
