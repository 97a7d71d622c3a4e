import type { Lease } from "../shared/protocol.ts";
import type { Outgoing } from "./connection.ts";
import type { GrantedExecution } from "./grants.ts";
import type { Fetched } from "./model-messages.ts";

/**
 * The runner's own table of leases. A lease belongs to this process, never to a socket: it stays until the dispatcher says that it is over,
 * or until this runner gives it up.
 *
 *   granted -> computing -> uploading -> completing -> (committed or refused)
 *      └──────────┴───────────┴─> failing -> (told)
 */
export const leasePhases = ["granted", "computing", "uploading", "completing", "failing"] as const;
export type LeasePhase = (typeof leasePhases)[number];

const successors = {
  granted: ["computing", "failing"],
  computing: ["uploading", "failing"],
  uploading: ["completing", "failing"],
  completing: [],
  failing: [],
} as const satisfies Record<LeasePhase, readonly LeasePhase[]>;

/** The message that tells the dispatcher how the lease ended; it is said again on every new socket until the lease is over. */
export type Verdict = Extract<Outgoing, { type: "complete" | "fail" }>;

export type HeldLease = GrantedExecution & LeaseState;

interface LeaseState {
  readonly phase: LeasePhase;
  /** Set in the phases `completing` and `failing`. */
  readonly verdict: Verdict | undefined;
  /** Aborted when the lease ends, so that what is under way for it stops. */
  readonly ended: AbortSignal;
  /** Signs of life beside the model thread's steps: input that arrives, attempts to upload. */
  activity: number;
  /** Leases of one grant, to be computed as one batch, have the same number. */
  readonly batch: number;
  /** Its input files, once they lie here. */
  readonly fetched: Fetched | undefined;
}

type Entry = GrantedExecution & EntryState;

interface EntryState extends LeaseState {
  phase: LeasePhase;
  verdict: Verdict | undefined;
  fetched: Fetched | undefined;
  abort: AbortController;
}

/** Epochs of ended leases that are remembered, so that a grant that is sent again is not computed again. */
const REMEMBERED = 10_000;

export class LeaseTable {
  /** In the order in which they were granted. At most one lease of an execution. */
  readonly #entries = new Map<string, Entry>();
  readonly #lastEpochs = new Map<string, number>();

  #batches = 0;

  /** A number for the executions of a grant. */
  newBatch(): number {
    return ++this.#batches;
  }

  /**
   * Takes a granted execution into a batch. `known`: the same lease is held already, nothing changes. `stale`: this epoch, or a later one, was here and is
   * over. A later epoch of a held execution ends the held lease.
   */
  grant(granted: GrantedExecution, batch: number): "new" | "known" | "stale" {
    const held = this.#entries.get(granted.execution);
    if (held?.epoch === granted.epoch) return "known";
    if ((this.#lastEpochs.get(granted.execution) ?? 0) >= granted.epoch) return "stale";
    if (held) this.end(held);
    const abort = new AbortController();
    const fresh = { phase: "granted", verdict: undefined, fetched: undefined, activity: 0 } as const;
    this.#entries.set(granted.execution, { ...granted, ...fresh, batch, abort, ended: abort.signal });
    this.#remember(granted);
    return "new";
  }

  /** The lease, while it is held. */
  find({ execution, epoch }: Lease): HeldLease | undefined {
    const entry = this.#entries.get(execution);
    return entry?.epoch === epoch ? entry : undefined;
  }

  /**
   * The batch that waits longest to be computed and has all its inputs; empty where there is none, and while one is computed.
   * @param betweenSteps whether pictures may be computed while a training is
   */
  next(betweenSteps = false): HeldLease[] {
    const computing = this.inPhase("computing");
    const besideTraining = betweenSteps && computing.length > 0 && computing.every(({ kind }) => kind === "training");
    if (computing.length > 0 && !besideTraining) return [];
    const waiting = this.inPhase("granted").filter(({ kind }) => kind === "picture" || !besideTraining);
    const first = waiting.find(({ batch }) => waiting.every(lease => lease.batch !== batch || lease.fetched));
    return waiting.filter(({ batch }) => batch === first?.batch);
  }

  /** The lease's inputs lie here. False where it is no longer held. */
  arrived({ execution, epoch }: Lease, fetched: Fetched): boolean {
    const entry = this.#entries.get(execution);
    if (entry?.epoch !== epoch) return false;
    entry.fetched = fetched;
    return true;
  }

  inPhase(phase: LeasePhase): HeldLease[] {
    return this.all().filter(lease => lease.phase === phase);
  }

  all(): HeldLease[] {
    return [...this.#entries.values()];
  }

  /**
   * Moves a lease on. False where it is no longer held: whatever finished comes too late and is dropped.
   * @throws Error for a move that the diagram above doesn't have.
   */
  advance(lease: Lease, phase: "computing" | "uploading"): boolean {
    return this.#move(lease, phase, undefined);
  }

  /** Moves a lease to `completing` or `failing`. False where it is no longer held. */
  conclude(verdict: Verdict): boolean {
    return this.#move(verdict, verdict.type === "complete" ? "completing" : "failing", verdict);
  }

  /** The lease is over; what is under way for it is aborted. False where it was not held. */
  end({ execution, epoch }: Lease): boolean {
    const entry = this.#entries.get(execution);
    if (entry?.epoch !== epoch) return false;
    this.#entries.delete(execution);
    entry.abort.abort();
    return true;
  }

  #move({ execution, epoch }: Lease, phase: LeasePhase, verdict: Verdict | undefined): boolean {
    const entry = this.#entries.get(execution);
    if (entry?.epoch !== epoch) return false;
    const allowed: readonly LeasePhase[] = successors[entry.phase];
    if (!allowed.includes(phase)) throw new Error(`lease ${execution} epoch ${epoch} cannot go from ${entry.phase} to ${phase}`);
    const mayMeet = (other: HeldLease) => other.batch === entry.batch || (entry.kind === "picture" && other.kind === "training");
    if (phase === "computing" && !this.inPhase("computing").every(mayMeet))
      throw new Error(`lease ${execution}: another batch is computed now`);
    entry.phase = phase;
    entry.verdict = verdict;
    return true;
  }

  #remember({ execution, epoch }: Lease): void {
    this.#lastEpochs.delete(execution);
    this.#lastEpochs.set(execution, epoch);
    const [oldest] = this.#lastEpochs.keys();
    if (this.#lastEpochs.size > REMEMBERED && oldest !== undefined) this.#lastEpochs.delete(oldest);
  }
}

/** The two members that name a lease in messages. */
export function leaseId({ execution, epoch }: Lease): Lease {
  return { execution, epoch };
}
