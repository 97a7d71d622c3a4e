import fc from "fast-check";
import { expect, it } from "vitest";
import { disconnected, greet, ready, restarted, revoke, seen, silent } from "../../../edge/dispatcher/instances.ts";
import { choose } from "../../../edge/dispatcher/policy.ts";
import * as store from "../../../edge/dispatcher/store.ts";
import { type ExecutionRow, type LeaseRow, migrate } from "../../../edge/dispatcher/tables.ts";
import type { Times } from "../../../edge/dispatcher/times.ts";
import { Model } from "./model.ts";
import { newPool, withSql } from "./support.ts";

/** Random interleavings of everything that can happen to a pool, against its real SQL: each answer and each row is compared with the model. */

const times: Times = { lease: 12_000, ack: 3_000, stall: 8_000, attempt: 25_000, maxAttempts: 3, trainingShare: 0.5 };
const EXECUTIONS = 10;
const RUNNERS = 3;
/** Most executions of a batch, by runner; the last one is the good one of the end. */
const maxBatches = [1, 2, 3, 3];
const result = { sha256: "0".repeat(64), bytes: 1, width: 1, height: 1 };
const error = { code: "runner_failed", message: "it failed" } as const;

const execution = fc.nat({ max: EXECUTIONS - 1 });
const runner = fc.nat({ max: RUNNERS - 1 });
/** Which of the leases that were ever granted: mostly a recent one, but any old one, of any runner, may turn up. */
const past = fc.oneof({ weight: 4, arbitrary: fc.nat({ max: 3 }) }, { weight: 1, arbitrary: fc.nat({ max: 50 }) });
/** By whom a lease is named: mostly by its own runner. */
const by = fc.option(runner, { freq: 5 });
const waiting = fc.oneof({ weight: 6, arbitrary: fc.nat({ max: 3_000 }) }, { weight: 1, arbitrary: fc.nat({ max: 40_000 }) });
const operation = fc.oneof(
  { weight: 3, arbitrary: fc.record({ op: fc.constant("offer"), execution }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("abandon"), execution }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant("hello"), runner, names: fc.array(past, { maxLength: 4 }) }) },
  {
    weight: 5,
    arbitrary: fc.record({
      op: fc.constant("ready"),
      runner,
      n: fc.nat({ max: 3 }),
      resident: fc.subarray(["m", "adapter-0", "adapter-1"]),
    }),
  },
  { weight: 4, arbitrary: fc.record({ op: fc.constant("accept"), past, by }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant("heartbeat"), past, by, counter: fc.nat({ max: 20 }) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("complete"), past, by }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("fail"), past, by, retryable: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("hand back"), past, by, why: fc.constantFrom("released", "rejected") }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("settle"), execution, ends: fc.constantFrom("settled", "refused", "crashed") }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("disconnect"), runner }) },
  { weight: 5, arbitrary: fc.record({ op: fc.constant("wait"), ms: waiting }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("restart"), sockets: fc.array(runner, { maxLength: RUNNERS }) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("revoke"), runner: fc.constant(RUNNERS - 1) }) },
);
type Operation = typeof operation extends fc.Arbitrary<infer T> ? T : never;

interface Granted {
  execution: string;
  epoch: number;
  runner: number;
}

class World {
  readonly model = new Model(times);
  readonly granted: Granted[] = [];
  readonly committed = new Map<string, number>();
  readonly ended = new Map<string, string>();
  readonly lastEpoch = new Map<string, number>();
  readonly connected = new Set<number>();
  readonly revoked = new Set<number>();
  readonly reasons = new Set<string>();
  readonly batchSizes = new Set<number>();
  readonly sql: SqlStorage;
  now = 1_000_000;

  constructor(sql: SqlStorage) {
    this.sql = sql;
    sql.exec("DROP TABLE IF EXISTS migrations");
    for (const table of ["executions", "leases", "instances", "tenants", "revoked_tokens", "pool"])
      sql.exec(`DROP TABLE IF EXISTS ${table}`);
    migrate(sql);
  }

  run(operation: Operation): void {
    this.#apply(operation);
    this.grant();
    this.check();
  }

  #apply(operation: Operation): void {
    const { sql, model, now } = this;
    switch (operation.op) {
      case "offer":
        this.offer(operation.execution);
        return;
      case "abandon":
        model.abandon(executionId(operation.execution));
        this.#note(store.abandon(sql, executionId(operation.execution), now));
        return;
      case "hello":
        this.hello(
          operation.runner,
          operation.names.flatMap(index => this.#granted(index) ?? []),
        );
        return;
      case "ready":
        if (this.connected.has(operation.runner)) ready(sql, runnerId(operation.runner), operation.n, operation.resident);
        return;
      case "accept":
        this.#withLease(operation, (lease, instance, by) => {
          expect(store.accept(sql, lease, instance, now)).toBe(model.accept(lease.execution, lease.epoch, by, now));
        });
        return;
      case "heartbeat":
        this.#withLease(operation, (lease, instance, by) => {
          const over = model.heartbeat(lease.execution, lease.epoch, operation.counter, by, now) === "over";
          const { execution, epoch } = lease;
          expect(store.heartbeat(sql, instance, [{ execution, epoch, counter: operation.counter }], now)).toEqual(
            over ? [{ execution, epoch }] : [],
          );
        });
        return;
      case "complete":
        this.#withLease(operation, (lease, instance, by) => {
          expect(store.complete(sql, lease, result, instance, now)).toBe(model.complete(lease.execution, lease.epoch, by));
        });
        return;
      case "fail":
        this.#withLease(operation, (lease, instance, by) => {
          const taken = store.fail(sql, lease, error, operation.retryable, instance, now, times);
          expect(taken).toBe(model.fail(lease.execution, lease.epoch, operation.retryable, by));
        });
        return;
      case "hand back":
        this.#withLease(operation, (lease, instance, by) => {
          const rejected = operation.why === "rejected";
          expect(store.handBack(sql, lease, operation.why, instance, now, times)).toBe(
            model.handBack(lease.execution, lease.epoch, rejected, by),
          );
        });
        return;
      case "settle":
        this.settle(executionId(operation.execution), operation.ends);
        return;
      case "disconnect":
        this.connected.delete(operation.runner);
        disconnected(sql, runnerId(operation.runner));
        return;
      case "wait":
        this.wait(operation.ms);
        return;
      case "restart":
        this.#restart(operation.sockets);
        return;
      case "revoke":
        this.connected.delete(operation.runner);
        this.revoked.add(operation.runner);
        model.revoke(operation.runner);
        this.#note(revoke(sql, `token-${operation.runner}`, now, times));
        return;
    }
  }

  offer(number: number): void {
    const id = executionId(number);
    const tenant = `tenant-${number % 2}`;
    const offered = { execution: id, tenant, params_sha256: "", model_hash: "m", refiner_hash: "", engine_version: 1, request_id: "r" };
    const batch = { batch_key: batchKey(id), adapters: [`adapter-${number % 2}`], kind: "picture" as const, deadline_at: 0 };
    expect(store.enqueue(this.sql, { ...offered, ...batch })).toBe(this.model.offer(id));
  }

  hello(number: number, leases: Granted[]): void {
    if (this.revoked.has(number)) return;
    this.connected.add(number);
    const hello = { instance: runnerId(number), engine_version: 1, provider: "cpu", models: ["m"], max_batch: maxBatches[number]!, leases };
    const verdicts = this.model.hello(number, leases, this.now);
    const greeting = greet(this.sql, hello, `token-${number}`, this.now, times);
    this.#note(greeting.ended);
    expect(greeting.verdicts.map(({ verdict }) => verdict)).toEqual(verdicts);
  }

  /** Grants all that can be granted, as the dispatcher does after every change. */
  grant(): Granted[] {
    const made: Granted[] = [];
    for (let choice = choose(this.sql, this.now, times); choice; choice = choose(this.sql, this.now, times)) {
      const { instance, executions } = choice;
      const number = Number(instance.slice("runner-".length));
      expect(this.connected).toContain(number);
      this.#checkBatch(executions, number);
      for (const { execution, epoch } of store.lease(this.sql, choice, this.now, times)) {
        expect(epoch).toBe(this.model.grant(execution, number, executions.length, this.now));
        expect(epoch).toBeGreaterThan(this.lastEpoch.get(execution) ?? 0);
        this.lastEpoch.set(execution, epoch);
        made.push({ execution, epoch, runner: number });
      }
    }
    this.granted.push(...made);
    return made;
  }

  /** What is granted together has one key, and is no more than the runner computes at once, nor less than it could. */
  #checkBatch(executions: readonly string[], runner: number): void {
    this.batchSizes.add(executions.length);
    expect(new Set(executions).size).toBe(executions.length);
    const [key, ...others] = new Set(executions.map(batchKey));
    expect(others).toEqual([]);
    const { alone } = this.model.executions.get(executions[0]!)!;
    const fitting = [...this.model.executions.values()].filter(
      ({ id, state, alone }) => state === "queued" && !alone && batchKey(id) === key,
    );
    expect(executions.length).toBe(alone || key === "" ? 1 : Math.min(maxBatches[runner]!, fitting.length));
  }

  settle(id: string, ends: "settled" | "refused" | "crashed"): void {
    const row = store.beginSettlement(this.sql, id, this.now);
    expect(row !== undefined).toBe(this.model.executions.get(id)?.state === "committing");
    if (!row || ends === "crashed") return;
    if (ends === "refused" && row.outcome === "succeeded") {
      store.resultRefused(this.sql, id, "no file", this.now, times);
      this.model.resultRefused(id);
    } else {
      if (row.outcome === "succeeded") this.committed.set(id, (this.committed.get(id) ?? 0) + 1);
      store.settled(this.sql, id, this.now);
      this.model.settled(id);
    }
  }

  wait(ms: number): void {
    this.now += ms;
    this.#note(store.expire(this.sql, this.now, times));
    this.model.expire(this.now);
    for (const id of silent(this.sql, this.now, times)) this.connected.delete(Number(id.slice("runner-".length)));
  }

  #restart(sockets: readonly number[]): void {
    migrate(this.sql);
    const kept = [...this.connected].filter(number => sockets.includes(number));
    for (const number of [...this.connected].filter(number => !kept.includes(number))) {
      this.connected.delete(number);
      this.model.restarted(number, this.now);
    }
    restarted(this.sql, kept.map(runnerId), this.now);
  }

  #note(ended: store.EndedLease[]): void {
    for (const { reason } of ended) this.reasons.add(reason);
  }

  /** The index-th latest lease. */
  #granted(index: number): Granted | undefined {
    return this.granted.at(-1 - index);
  }

  #withLease({ past, by }: { past: number; by: number | null }, act: (lease: Granted, instance: string, by: number) => void): void {
    const lease = this.#granted(past);
    if (!lease) return;
    const number = by ?? lease.runner;
    if (!this.connected.has(number)) return;
    seen(this.sql, runnerId(number), this.now);
    act(lease, runnerId(number), number);
  }

  /** Everything that has to hold at any time. */
  check(): void {
    const rows = this.sql.exec<ExecutionRow>("SELECT * FROM executions ORDER BY id").toArray();
    const leases = this.sql.exec<LeaseRow>("SELECT * FROM leases").toArray();
    expect(rows.map(({ id }) => id)).toEqual([...this.model.executions.keys()].sort());
    for (const row of rows) {
      const { state, epoch, attempts, outcome, lease } = this.model.executions.get(row.id)!;
      expect(row.overtaken).toBeLessThanOrEqual(4);
      expect({ id: row.id, state: row.state, epoch: row.epoch, attempts: row.attempts, outcome: row.outcome }).toEqual({
        id: row.id,
        state,
        epoch,
        attempts,
        outcome,
      });
      const held = leases.filter(({ execution }) => execution === row.id);
      expect(held.map(held => [held.epoch, held.instance, held.accepted_at !== null])).toEqual(
        lease ? [[lease.epoch, runnerId(lease.runner), lease.accepted]] : [],
      );
      expect(row.attempts).toBeLessThanOrEqual(times.maxAttempts);
      this.#checkEnd(row);
    }
    expect(leases.length).toBe(rows.filter(({ state }) => state === "leased").length);
  }

  /** What is done stays as it is. */
  #checkEnd({ id, state, outcome, epoch, winner, detail }: ExecutionRow): void {
    const end = JSON.stringify({ outcome, epoch, winner, detail });
    const before = this.ended.get(id);
    if (before !== undefined) expect({ state, end }).toEqual({ state: "done", end: before });
    if (state === "done") this.ended.set(id, end);
    expect(this.committed.get(id) ?? 0).toBe(state === "done" && outcome === "succeeded" ? 1 : 0);
  }

  /** Time runs on and one good runner serves: everything comes to its end. */
  finish(): void {
    const number = RUNNERS;
    for (let round = 0; round < 40 && !this.isFinished(); round++) {
      this.wait(4_000);
      if (!this.connected.has(number)) this.hello(number, []);
      seen(this.sql, runnerId(number), this.now);
      ready(this.sql, runnerId(number), EXECUTIONS);
      for (const { execution, epoch, runner } of this.grant()) {
        if (runner !== number) continue;
        store.accept(this.sql, { execution, epoch }, runnerId(number), this.now);
        this.model.accept(execution, epoch, number, this.now);
        store.complete(this.sql, { execution, epoch }, result, runnerId(number), this.now);
        this.model.complete(execution, epoch, number);
      }
      for (const id of this.model.executions.keys()) this.settle(id, "settled");
      this.check();
    }
    expect([...this.model.executions.values()].filter(({ state }) => state !== "done")).toEqual([]);
    for (const { abandoned, outcome, attempts } of this.model.executions.values()) {
      if (outcome === "canceled") expect(abandoned).toBe(true);
      if (attempts >= times.maxAttempts) expect(outcome).toBe("failed");
    }
  }

  isFinished(): boolean {
    return [...this.model.executions.values()].every(({ state }) => state === "done");
  }
}

/** Two keys, and some that are computed alone. */
function batchKey(id: string): string {
  return ["key-0", "key-1", ""][Number(id.slice("execution-".length)) % 3]!;
}
function executionId(number: number): string {
  return `execution-${number}`;
}
function runnerId(number: number): string {
  return `runner-${number}`;
}

const endReasons = ["abandoned", "attempt_deadline", "no_heartbeat", "no_progress", "not_acknowledged", "not_held", "token_revoked"];

it("keeps every invariant under random interleavings, and loses nothing", async () => {
  const seed = Date.now() % 2 ** 31;
  console.log(`fast-check seed ${seed}`);
  const { outcomes, reasons, batchSizes } = await withSql(newPool(), sql => {
    const outcomes = new Set<string | null>();
    const reasons = new Set<string>();
    const batchSizes = new Set<number>();
    const property = fc.property(fc.array(operation, { minLength: 60, maxLength: 200, size: "max" }), operations => {
      const world = new World(sql);
      for (const operation of operations) world.run(operation);
      world.finish();
      for (const { outcome } of world.model.executions.values()) outcomes.add(outcome);
      for (const reason of world.reasons) reasons.add(reason);
      for (const size of world.batchSizes) batchSizes.add(size);
    });
    fc.assert(property, { seed, numRuns: 250 });
    return { outcomes: [...outcomes].sort(), reasons: [...reasons].sort(), batchSizes: [...batchSizes].sort() };
  });
  // The interleavings reach every end of executions and of leases, else the property would say little.
  expect(outcomes).toEqual(["canceled", "failed", "succeeded"]);
  expect(reasons).toEqual(endReasons);
  expect(batchSizes).toEqual([1, 2, 3]);
});
