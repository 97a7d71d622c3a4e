/** The middle value, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return (sorted[Math.ceil(middle) - 1]! + sorted[Math.floor(middle)]!) / 2;
}

/** Median of the quotients pair by pair: it holds although the machine's speed drifts between the rounds. */
export function medianRatio(dividends: readonly number[], divisors: readonly number[]): number {
  return median(dividends.map((value, round) => value / divisors[round]!));
}
