import { type Env, settings } from "../env.ts";
import { errorFields, log } from "../log.ts";
import { type Cursor, FROM_THE_START, sweepPool } from "./sweep.ts";

/** What a sweeper needs of its dispatcher. */
export interface SweptPool {
  readonly env: Env;
  readonly sql: SqlStorage;
  readonly pool: string;
  /** No job waits for these executions any more. */
  abandon(executions: readonly string[]): void;
  /** A sweep is over: what is due next may have changed. */
  swept(): Promise<void>;
}

/** When a pool is compared with D1 (sweep.ts): one sweep at a time, every SWEEP_MS while anything lives, and at the deadlines of jobs. */
export class Sweeper {
  readonly #of: () => SweptPool;
  #last: Promise<void> = Promise.resolve();
  #underWay = false;
  #cursor: Cursor = FROM_THE_START;

  constructor(of: () => SweptPool) {
    this.#of = of;
  }

  /** The next sweep runs at this time or before. */
  runBy(at: number): void {
    this.#of().sql.exec("UPDATE pool SET sweep_at = min(coalesce(sweep_at, ?1), ?1)", at);
  }

  /** A job with this deadline was accepted. */
  watch(deadlineAt: number, now: number): void {
    const { sql, env } = this.#of();
    sql.exec("UPDATE pool SET watches = watches + 1");
    this.runBy(Math.min(deadlineAt, now + settings(env).SWEEP_MS));
  }

  /** Begins a sweep where one is due. It ends in its own time; what fails is logged and repeated. */
  runIfDue(now: number): Promise<void> | undefined {
    const { sql, env, pool } = this.#of();
    const next = now + settings(env).SWEEP_MS;
    const due = sql.exec("UPDATE pool SET sweep_at = ? WHERE sweep_at <= ? RETURNING sweep_at", next, now).toArray().length > 0;
    if (!due || this.#underWay) return undefined;
    return this.run().catch((error: unknown) => log("error", "sweep failed; it will be repeated", { pool, ...errorFields(error) }));
  }

  /** Sweeps after the sweep that is under way, which may have looked before what the caller means happened. */
  async run(): Promise<void> {
    const sweeping = this.#last.then(() => this.#sweep());
    this.#last = sweeping.catch(() => undefined);
    await sweeping;
  }

  async #sweep(): Promise<void> {
    this.#underWay = true;
    try {
      await this.#compareWithD1(Date.now());
    } finally {
      this.#underWay = false;
      await this.#of().swept();
    }
  }

  async #compareWithD1(now: number): Promise<void> {
    const { sql, env, pool, abandon } = this.#of();
    const { watches } = sql.exec<{ watches: number }>("SELECT watches FROM pool").one();
    // Should this one fail, the next is due all the same.
    sql.exec("UPDATE pool SET sweep_at = ?", now + settings(env).SWEEP_MS);
    const { abandoned, next, cursor } = await sweepPool(env, sql, pool, this.#cursor, now);
    this.#cursor = cursor;
    if (abandoned.length > 0) abandon(abandoned);
    if (next !== null) this.runBy(next);
    else this.#stop(watches);
  }

  /** Nothing is live, neither here nor in D1, unless a job was announced since D1 was asked. */
  #stop(watches: number): void {
    this.#of().sql.exec(
      "UPDATE pool SET sweep_at = NULL WHERE watches = ? AND NOT EXISTS (SELECT 1 FROM executions WHERE state <> 'done')",
      watches,
    );
  }
}
