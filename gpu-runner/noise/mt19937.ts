/**
 * The numbers that torch.randn draws on the CPU, in order: the Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998) and Box-Muller. A draw of
 * 16 and more values fills blocks of 16 from 24-bit uniforms; a smaller one takes 53-bit uniforms, a pair of values at a time, and keeps what is
 * left for the next. What seeds from ComfyUI, and from A1111 with its noise on the CPU, stand for.
 */
import type { NoiseGenerator } from "./generator.ts";

const block = 16;
const half = block / 2;

/** @param seed its low 32 bits count, as in torch */
export function mt19937Noise(seed: bigint | number): NoiseGenerator {
  const random = mersenneTwister(Number(BigInt.asUintN(32, BigInt(seed))));
  let kept: number | null = null;
  const scalar = () => {
    if (kept !== null) {
      const value = kept;
      kept = null;
      return value;
    }
    const [angle, uniform] = [2 * Math.PI * uniform53(random), uniform53(random)];
    const radius = Math.sqrt(-2 * Math.log1p(-uniform));
    kept = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
  return count => (count < block ? Float32Array.from({ length: count }, scalar) : vectorised(random, count));
}

/** All uniforms first; a last block that is not whole is drawn anew, over the last 16 values. */
function vectorised(random: () => number, count: number): Float32Array {
  const values = Float32Array.from({ length: count }, () => (random() & 0xffffff) * 2 ** -24);
  for (let start = 0; start + block <= count; start += block) boxMuller(values, start);
  if (count % block !== 0) {
    for (let i = count - block; i < count; i++) values[i] = (random() & 0xffffff) * 2 ** -24;
    boxMuller(values, count - block);
  }
  return values;
}

/** Eight pairs: value j gives the radius, value j + 8 the angle. Rounded as torch's float32 functions round. */
function boxMuller(values: Float32Array, start: number): void {
  for (let j = start; j < start + half; j++) {
    const radius = Math.fround(Math.sqrt(-2 * Math.fround(Math.log(Math.fround(1 - values[j]!)))));
    const angle = Math.fround(Math.fround(2 * Math.PI) * values[j + half]!);
    values[j] = radius * Math.cos(angle);
    values[j + half] = radius * Math.sin(angle);
  }
}

/** Two words make a uniform in [0, 1) with 53 bits, the first one the high part. */
function uniform53(random: () => number): number {
  const [high, low] = [random(), random()];
  return ((high & 0x1fffff) * 2 ** 32 + low) * 2 ** -53;
}

const size = 624;
const shift = 397;

/** Successive 32-bit words. */
function mersenneTwister(seed: number): () => number {
  const state = new Uint32Array(size);
  state[0] = seed;
  for (let i = 1; i < size; i++) state[i] = Math.imul(1812433253, state[i - 1]! ^ (state[i - 1]! >>> 30)) + i;
  let next = size;
  return () => {
    if (next === size) {
      twist(state);
      next = 0;
    }
    let word = state[next++]!;
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  };
}

function twist(state: Uint32Array): void {
  for (let i = 0; i < size; i++) {
    const mixed = (state[i]! & 0x80000000) | (state[(i + 1) % size]! & 0x7fffffff);
    state[i] = state[(i + shift) % size]! ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
  }
}
