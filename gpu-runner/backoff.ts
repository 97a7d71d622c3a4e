export interface Backoff {
  /** Milliseconds of the first wait's upper bound; each later bound is twice the one before. */
  baseMs: number;
  /** Upper bound of every wait, in milliseconds. */
  capMs: number;
}

/**
 * Milliseconds to wait before retry number `attempt` (0, 1, …): uniform between half the bound and the bound, so that many runners
 * that lost the same edge don't come back in the same instant.
 */
export function backoffMs(attempt: number, { baseMs, capMs }: Backoff, random: () => number = Math.random): number {
  const bound = Math.min(capMs, baseMs * 2 ** Math.min(attempt, 30));
  return bound / 2 + (random() * bound) / 2;
}
