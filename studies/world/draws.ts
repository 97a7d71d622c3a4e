import { philox } from "../../gpu-runner/noise/philox.ts";

/** Where a picture's random choices come from; a test plays fixed ones instead. */
export interface Draws {
  /** In low .. high. */
  uniform(low: number, high: number): number;
  /** Around 0. */
  normal(deviation: number): number;
  /** @param weights that sum to 1; all the same where absent */
  choose<T>(of: readonly T[], weights?: readonly number[]): T;
}

/** Philox draws: the same seed gives the same picture on every machine. @param seed 0 .. 2^32 - 1 */
export function seededDraws(seed: number): Draws {
  let count = 0;
  const fraction = () => (philox(0, count++, [seed, 0])[0] + 0.5) / 2 ** 32;
  return {
    uniform: (low, high) => low + (high - low) * fraction(),
    // Box and Muller.
    normal: deviation => deviation * Math.sqrt(-2 * Math.log(fraction())) * Math.cos(2 * Math.PI * fraction()),
    choose: (of, weights) => of[chosen(fraction(), of.length, weights)]!,
  };
}

/** The index that a fraction in 0 .. 1 falls on. */
export function chosen(fraction: number, count: number, weights?: readonly number[]): number {
  if (!weights) return Math.min(Math.floor(fraction * count), count - 1);
  let left = fraction;
  const index = weights.findIndex(weight => {
    left -= weight;
    return left < 0;
  });
  return index < 0 ? count - 1 : index;
}
