import type { Times } from "../../../edge/dispatcher/times.ts";

/**
 * The dispatcher's rules in plain objects, as simply as they can be said: what the SQL is compared with. It is told of every event; what it
 * cannot know is who gets what next (the policy has a test of its own), so grants are told too.
 */

export interface ModelLease {
  runner: number;
  epoch: number;
  accepted: boolean;
  ack: number;
  heard: number;
  counter: number;
  moved: number;
  step: number;
  deadline: number;
}

export interface ModelExecution {
  id: string;
  state: "queued" | "leased" | "committing" | "done";
  epoch: number;
  attempts: number;
  abandoned: boolean;
  outcome: "succeeded" | "failed" | "canceled" | null;
  winner: { runner: number; epoch: number } | null;
  /** Executions of its latest grant. */
  batch: number;
  /** No longer put into a batch. */
  alone: boolean;
  lease: ModelLease | null;
}

export class Model {
  readonly executions = new Map<string, ModelExecution>();
  readonly times: Times;
  constructor(times: Times) {
    this.times = times;
  }

  offer(id: string): "queued" | "known" | "tombstoned" {
    const known = this.executions.get(id);
    if (known) return known.outcome === null ? "known" : "tombstoned";
    const fresh = { state: "queued", epoch: 0, attempts: 0, abandoned: false, outcome: null, winner: null, lease: null } as const;
    this.executions.set(id, { id, ...fresh, batch: 0, alone: false });
    return "queued";
  }

  abandon(id: string): void {
    const execution = this.executions.get(id);
    if (!execution) {
      this.offer(id);
      this.abandon(id);
      return;
    }
    execution.abandoned = true;
    if (execution.state === "queued" || execution.state === "leased") this.#conclude(execution, "canceled");
  }

  grant(id: string, runner: number, batch: number, now: number): number {
    const execution = this.executions.get(id)!;
    if (execution.state !== "queued") throw new Error(`granted in state ${execution.state}`);
    if (execution.alone && batch > 1) throw new Error("granted in a batch after it was parted from one");
    const { ack, attempt } = this.times;
    Object.assign(execution, { state: "leased", batch });
    execution.epoch++;
    const lease = { runner, epoch: execution.epoch, accepted: false, ack: now + ack, heard: now, counter: 0, moved: now, step: 0 };
    execution.lease = { ...lease, deadline: now + attempt * batch };
    return execution.epoch;
  }

  holds(id: string, epoch: number, runner: number): ModelLease | undefined {
    const lease = this.executions.get(id)?.lease;
    return lease && lease.epoch === epoch && lease.runner === runner ? lease : undefined;
  }

  won(id: string, epoch: number, runner: number): boolean {
    const winner = this.executions.get(id)?.winner;
    return winner?.epoch === epoch && winner.runner === runner;
  }

  accept(id: string, epoch: number, runner: number, now: number): "first" | "again" | "over" {
    const lease = this.holds(id, epoch, runner);
    if (!lease) return "over";
    if (lease.accepted) return "again";
    Object.assign(lease, { accepted: true, heard: now, moved: now });
    return "first";
  }

  heartbeat(id: string, epoch: number, counter: number, runner: number, now: number): "alive" | "over" {
    const lease = this.holds(id, epoch, runner);
    if (!lease) return this.won(id, epoch, runner) ? "alive" : "over";
    lease.heard = now;
    if (counter > lease.counter) {
      lease.step = Math.max(lease.step, Math.ceil((now - lease.moved) / (counter - lease.counter)));
      Object.assign(lease, { counter, moved: now });
    }
    return "alive";
  }

  complete(id: string, epoch: number, runner: number): "committing" | "committed" | "refused" {
    const execution = this.executions.get(id);
    if (this.holds(id, epoch, runner)) {
      execution!.winner = { runner, epoch };
      this.#conclude(execution!, "succeeded");
      return "committing";
    }
    if (!this.won(id, epoch, runner)) return "refused";
    return execution!.state === "done" ? "committed" : "committing";
  }

  fail(id: string, epoch: number, retryable: boolean, runner: number): boolean {
    if (!this.holds(id, epoch, runner)) return false;
    const execution = this.executions.get(id)!;
    if (retryable) this.#loseAttempt(execution);
    else this.#conclude(execution, "failed");
    return true;
  }

  handBack(id: string, epoch: number, rejected: boolean, runner: number): boolean {
    if (!this.holds(id, epoch, runner)) return false;
    const execution = this.executions.get(id)!;
    if (rejected) this.#part(execution);
    this.#requeue(execution);
    return true;
  }

  settled(id: string): void {
    const execution = this.executions.get(id);
    if (execution?.state === "committing") execution.state = "done";
  }

  resultRefused(id: string): void {
    const execution = this.executions.get(id);
    if (execution?.state !== "committing" || execution.outcome !== "succeeded") return;
    execution.winner = null;
    if (execution.abandoned) this.#conclude(execution, "canceled");
    else this.#loseAttempt(execution);
  }

  hello(runner: number, named: readonly { execution: string; epoch: number }[], now: number): ("keep" | "abandon")[] {
    const verdicts = named.map(({ execution, epoch }) => {
      const lease = this.holds(execution, epoch, runner);
      if (lease) Object.assign(lease, { heard: now, ...(!lease.accepted && { accepted: true, moved: now }) });
      return lease || this.won(execution, epoch, runner) ? "keep" : "abandon";
    });
    for (const execution of this.#heldBy(runner)) {
      if (named.some(lease => lease.execution === execution.id && lease.epoch === execution.epoch)) continue;
      if (execution.lease!.accepted) this.#loseAttempt(execution);
      else this.#withdraw(execution);
    }
    return verdicts;
  }

  revoke(runner: number): void {
    for (const execution of this.#heldBy(runner)) this.#requeue(execution);
  }

  /** The object ran again after it had lost this runner's socket unawares. */
  restarted(runner: number, now: number): void {
    for (const { lease } of this.#heldBy(runner)) Object.assign(lease!, { heard: now, moved: now });
  }

  expire(now: number): void {
    for (const execution of this.executions.values()) {
      const { lease } = execution;
      if (!lease) continue;
      const stall = Math.max(this.times.stall, 8 * lease.step);
      if (!lease.accepted) {
        if (lease.ack <= now) this.#withdraw(execution);
      } else if (lease.deadline <= now || lease.heard + this.times.lease <= now || lease.moved + stall <= now) {
        this.#loseAttempt(execution);
      }
    }
  }

  #heldBy(runner: number): ModelExecution[] {
    return [...this.executions.values()].filter(({ lease }) => lease?.runner === runner);
  }

  #requeue(execution: ModelExecution): void {
    Object.assign(execution, { state: "queued", outcome: null, lease: null });
  }

  /** A grant that was not accepted. */
  #withdraw(execution: ModelExecution): void {
    this.#part(execution);
    this.#requeue(execution);
  }

  /** Alone from now on, where it was in a batch. */
  #part(execution: ModelExecution): void {
    if (execution.batch > 1) execution.alone = true;
  }

  #loseAttempt(execution: ModelExecution): void {
    if (execution.batch === 1) execution.attempts++;
    this.#part(execution);
    this.#requeue(execution);
    if (execution.attempts >= this.times.maxAttempts) this.#conclude(execution, "failed");
  }

  #conclude(execution: ModelExecution, outcome: "succeeded" | "failed" | "canceled"): void {
    Object.assign(execution, { state: "committing", outcome, lease: null });
  }
}
