/** A step may take this many times as long as the slowest one since the thread was last at rest: the decoder and the encoder have no steps of their own. */
const STEP_FACTOR = 8;

export interface PulseLimits {
  /** Least time without a step after which the thread counts as hung, in milliseconds. */
  watchdogMs: number;
  /** Most time for loading a model, in milliseconds. */
  loadMs: number;
}

/** What tells a thread at work from one that hangs. Times are of `performance.now()`, in milliseconds. */
export class ThreadPulse {
  readonly #limits: PulseLimits;
  #lastCounter: number;
  #lastStepAt: number;
  #slowestStepMs = 0;
  /** Since when a model is loaded; undefined while none is. */
  #loadingSince: number | undefined;

  constructor(limits: PulseLimits, counter: number, now: number) {
    this.#limits = limits;
    this.#lastCounter = counter;
    this.#lastStepAt = now;
  }

  /** Takes a look: whether a model is loaded, and that for no longer than it may take, which counts as a sign of life. */
  isLoading(saysSo: boolean, now: number): boolean {
    this.#loadingSince = saysSo ? (this.#loadingSince ?? now) : undefined;
    return this.#loadingSince !== undefined && now - this.#loadingSince <= this.#limits.loadMs;
  }

  /** Takes the steps so far. For how long there may be none, in milliseconds, where there was none for longer; undefined while it is alive. */
  overdue(counter: number, now: number): number | undefined {
    if (counter !== this.#lastCounter) {
      this.#slowestStepMs = Math.max(this.#slowestStepMs, now - this.#lastStepAt);
      this.#lastCounter = counter;
      this.#lastStepAt = now;
    }
    const limit = Math.max(this.#limits.watchdogMs, STEP_FACTOR * this.#slowestStepMs);
    return now - this.#lastStepAt > limit ? limit : undefined;
  }
}
