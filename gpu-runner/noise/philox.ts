/**
 * Counter-based normal noise: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) and Box-Muller, the numbers
 * that torch draws on CUDA for one element per thread (A1111 calls it "NV"). Element i of draw d depends on (seed, d, i) only.
 */

import type { NoiseGenerator } from "./generator.ts";

/** @param seed 0 .. 2^64 - 1; a number up to 2^53 - 1 is exact */
export function philoxNoise(seed: bigint | number): NoiseGenerator {
  const wide = BigInt(seed);
  if (wide < 0n || wide >= 1n << 64n) throw new RangeError(`seed: expected 0 .. 2^64 - 1, got ${wide}`);
  const key = [Number(wide & 0xffffffffn), Number(wide >> 32n)] as const;
  let draw = 0;
  return count => {
    const values = Float32Array.from({ length: count }, (_, i) => normal(philox(draw, i, key)));
    draw++;
    return values;
  };
}

/** The first two words of Philox4x32-10 at counter (draw, 0, index, 0). */
export function philox(draw: number, index: number, key: readonly [number, number]): [number, number] {
  let [c0, c1, c2, c3] = [draw, 0, index, 0];
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = multiply(0xd2511f53, c0);
    const [high2, low2] = multiply(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high2 ^ c1 ^ k0) >>> 0, low2, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1];
}

/** High and low word of the 64-bit product of two 32-bit words. */
function multiply(a: number, b: number): [high: number, low: number] {
  const low = Math.imul(a, b) >>> 0;
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const carry = a0 * b1 + (middle & 0xffff);
  return [(a1 * b1 + Math.floor(middle / 0x10000) + Math.floor(carry / 0x10000)) >>> 0, low];
}

/** Box-Muller with cuRAND's mapping of words to (0, 1] and (0, 2 pi]. */
function normal([x, y]: readonly [number, number]): number {
  const u = x * 2.3283064e-10 + 2.3283064e-10 / 2;
  const angle = y * (2.3283064e-10 * 6.2831855) + (2.3283064e-10 * 6.2831855) / 2;
  return Math.sqrt(-2 * Math.log(u)) * Math.sin(angle);
}
