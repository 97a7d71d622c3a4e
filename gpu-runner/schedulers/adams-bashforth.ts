import { combine } from "./combine.ts";

const weights = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]] as const;

/** The direction of the Adams-Bashforth method from the last of `history`, oldest first, for equal steps; order 4 at most. */
export function adamsBashforth(history: readonly Float32Array[]): Float32Array {
  const recent = history.slice(-4).reverse();
  return combine(...recent.map((values, i) => [weights[recent.length - 1]![i]!, values] as const));
}
