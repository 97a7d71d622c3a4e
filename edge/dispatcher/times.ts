import type { Settings } from "../env.ts";

/** The settings that the state machine goes by. Times in milliseconds. */
export interface Times {
  /** A lease without heartbeat ends after this. */
  readonly lease: number;
  /** A grant that isn't accepted by then is withdrawn; an instance that gave work back gets none for as long. */
  readonly ack: number;
  /** Least time without a step before a computation counts as hung. */
  readonly stall: number;
  /** Most time for one attempt. */
  readonly attempt: number;
  /** Lost attempts before an execution fails. */
  readonly maxAttempts: number;
  /** Share of the connected instances that may compute trainings at once; one always may. */
  readonly trainingShare: number;
}

export function timesOf(settings: Settings): Times {
  return {
    lease: settings.LEASE_MS,
    ack: settings.ACK_MS,
    stall: settings.STALL_MS,
    attempt: settings.ATTEMPT_MS,
    maxAttempts: settings.MAX_ATTEMPTS,
    trainingShare: settings.TRAINING_SHARE,
  };
}

/** A computation counts as hung after so many of its slowest step, where that is more than the least time. */
const STALL_STEPS = 8;

/** What counts as a training's slowest step from the start, in milliseconds: opening its sessions is one call that says nothing meanwhile. */
export const TRAINING_STEP_MS = 60_000;

/** SQL over a row of `leases`: when its computation counts as hung. */
export function stallsAt({ stall }: Times): string {
  return `counter_changed_at + max(${stall}, ${STALL_STEPS} * step_ms)`;
}

/** How long a failed settlement waits before it is tried again: doubled each time, at most 30 s. */
export function settleDelay(failures: number): number {
  return Math.min(30_000, 1000 * 2 ** Math.min(failures, 5));
}

/** How long tombstones are kept: longer than the longest-lived offer. */
export const TOMBSTONE_MS = 48 * 3_600_000;
