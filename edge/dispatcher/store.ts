import type { JobError } from "../../shared/errors.ts";
import type { ExecutionResult, Lease } from "../../shared/protocol.ts";
import type { ExecutionKind } from "../../shared/signing.ts";
import type { Choice } from "./policy.ts";
import { type ExecutionRow, first, type LeaseRow, type Outcome } from "./tables.ts";
import { settleDelay, stallsAt, type Times, TOMBSTONE_MS, TRAINING_STEP_MS } from "./times.ts";

/**
 * The state machine of a pool's executions: transitions in SQL, each in one synchronous piece. No sockets, no clock, no D1:
 * `now` is an argument, and what has to be said to runners is returned.
 */

/** A lease that ended on our side: its runner is told to stop. */
export interface EndedLease extends Lease {
  readonly instance: string;
  readonly request_id: string;
  readonly reason: EndReason;
}
export type EndReason =
  | "abandoned"
  | "not_acknowledged"
  | "no_heartbeat"
  | "no_progress"
  | "attempt_deadline"
  | "not_held"
  | "token_revoked";

export interface OfferedExecution {
  readonly execution: string;
  readonly tenant: string;
  readonly params_sha256: string;
  readonly model_hash: string;
  /** '' where it needs none. */
  readonly refiner_hash: string;
  readonly engine_version: number;
  readonly request_id: string;
  /** Executions of the same key may be computed as one batch. */
  readonly batch_key: string;
  /** Content hashes. */
  readonly adapters: readonly string[];
  readonly kind: ExecutionKind;
  /** Of a training: milliseconds since 1970, when its job is over; 0: none. */
  readonly deadline_at: number;
}

/** A verified offer whose row is live. A known id changes nothing. */
export function enqueue(sql: SqlStorage, offered: OfferedExecution): "queued" | "known" | "tombstoned" {
  const known = knows(sql, offered.execution);
  if (known) return known;
  const { execution, tenant, params_sha256, model_hash, refiner_hash, engine_version, request_id, batch_key, adapters } = offered;
  const { kind, deadline_at } = offered;
  sql.exec("INSERT INTO tenants (id, served) VALUES (?, 0) ON CONFLICT DO NOTHING", tenant);
  sql.exec(
    `INSERT INTO executions (id, tenant, params_sha256, model_hash, refiner_hash, engine_version, request_id, batch_key, adapters, kind, deadline_at, state)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued')`,
    ...[execution, tenant, params_sha256, model_hash, refiner_hash, engine_version, request_id, batch_key, JSON.stringify(adapters)],
    ...[kind, deadline_at],
  );
  return "queued";
}

/** What an offer of this execution would meet. */
export function knows(sql: SqlStorage, execution: string): "known" | "tombstoned" | undefined {
  const row = first<{ outcome: Outcome | null }>(sql, "SELECT outcome FROM executions WHERE id = ?", execution);
  return row && (row.outcome === null ? "known" : "tombstoned");
}

/** No job waits for it any more. What commits already, commits; an id that never arrived leaves a tombstone. */
export function abandon(sql: SqlStorage, execution: string, now: number): EndedLease[] {
  const row = executionRow(sql, execution);
  if (!row) {
    sql.exec(
      `INSERT INTO executions (id, tenant, params_sha256, model_hash, engine_version, request_id, state, abandoned, outcome, settle_at)
       VALUES (?, '', '', '', 0, '', 'committing', 1, 'canceled', ?)`,
      ...[execution, now],
    );
    return [];
  }
  sql.exec("UPDATE executions SET abandoned = 1 WHERE id = ?", execution);
  if (row.state === "queued") conclude(sql, execution, "canceled", null, now);
  if (row.state !== "leased") return [];
  const ended = endLease(sql, execution, "abandoned");
  conclude(sql, execution, "canceled", null, now);
  return ended;
}

/**
 * Gives queued executions to an instance as one grant, each under its next epoch. The grant takes one of the instance's credits and the turn of
 * every tenant in it. A batch has as many times the time of one attempt as it has members, a training the time that its job has.
 */
export function lease(sql: SqlStorage, { executions, instance, overtaken }: Choice, now: number, times: Times): LeaseRow[] {
  const { grants } = sql.exec<{ grants: number }>("UPDATE pool SET grants = grants + 1 RETURNING grants").one();
  sql.exec("UPDATE instances SET ready = ready - 1, last_granted = ? WHERE id = ?", grants, instance);
  if (overtaken !== null) sql.exec("UPDATE executions SET overtaken = overtaken + 1 WHERE id = ?", overtaken);
  return executions.map(execution => {
    const { epoch, tenant, kind, deadline_at } = sql
      .exec<{ epoch: number; tenant: string; kind: ExecutionKind; deadline_at: number }>(
        `UPDATE executions SET state = 'leased', front = 0, epoch = epoch + 1, batch_size = ? WHERE id = ? AND state = 'queued'
         RETURNING epoch, tenant, kind, deadline_at`,
        ...[executions.length, execution],
      )
      .one();
    sql.exec("UPDATE tenants SET served = ? WHERE id = ?", grants, tenant);
    return sql
      .exec<LeaseRow>(
        `INSERT INTO leases (execution, epoch, instance, ack_deadline, last_heartbeat, counter_changed_at, attempt_deadline, grant_number, step_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING *`,
        ...[execution, epoch, instance, now + times.ack, now, now, deadline_at || now + times.attempt * executions.length, grants],
        kind === "training" ? TRAINING_STEP_MS : 0,
      )
      .one();
  });
}

/** The current lease, if it is this one. */
export function currentLease(sql: SqlStorage, { execution, epoch }: Lease, instance: string): LeaseRow | undefined {
  return first<LeaseRow>(sql, "SELECT * FROM leases WHERE execution = ? AND epoch = ? AND instance = ?", execution, epoch, instance);
}

/** The runner took the grant. False where the lease is over. `first`: it had not been accepted before. */
export function accept(sql: SqlStorage, lease: Lease, instance: string, now: number): "first" | "again" | "over" {
  const current = currentLease(sql, lease, instance);
  if (!current) return "over";
  if (current.accepted_at !== null) return "again";
  sql.exec("UPDATE leases SET accepted_at = ?1, last_heartbeat = ?1, counter_changed_at = ?1 WHERE execution = ?2", now, lease.execution);
  return "first";
}

/**
 * The runner gives the lease back without having computed: a grant refused, or a drain. It does not count as an attempt and is next in line;
 * so that the two don't play ball, the instance gets nothing new for a while. What was refused in a batch is tried alone, since one member may
 * be what the others are refused for. False where the lease was over.
 */
export function handBack(
  sql: SqlStorage,
  lease: Lease,
  why: "rejected" | "released",
  instance: string,
  now: number,
  times: Times,
): boolean {
  if (!currentLease(sql, lease, instance)) return false;
  if (why === "rejected") partFromBatch(sql, lease.execution);
  takeBack(sql, lease.execution, now, times);
  return true;
}

function takeBack(sql: SqlStorage, execution: string, now: number, times: Times): void {
  sql.exec(
    "UPDATE instances SET paused_until = ? WHERE id = (SELECT instance FROM leases WHERE execution = ?)",
    now + times.ack,
    execution,
  );
  returnCredit(sql, execution);
  sql.exec("DELETE FROM leases WHERE execution = ?", execution);
  sql.exec("UPDATE executions SET state = 'queued', front = 1 WHERE id = ?", execution);
}

/** The instance has its credit back with the last lease of a grant that it never accepted. */
function returnCredit(sql: SqlStorage, execution: string): void {
  sql.exec(
    `UPDATE instances SET ready = ready + 1 WHERE id = (
       SELECT instance FROM leases AS l WHERE execution = ? AND accepted_at IS NULL
       AND NOT EXISTS (SELECT 1 FROM leases WHERE grant_number = l.grant_number AND execution <> l.execution))`,
    execution,
  );
}

/** What was granted in a batch is computed alone from now on. False where it was alone already. */
function partFromBatch(sql: SqlStorage, execution: string): boolean {
  return sql.exec("UPDATE executions SET batch_key = '' WHERE id = ? AND batch_size > 1 RETURNING id", execution).toArray().length > 0;
}

/** Signs of life. Returns the leases that are over, so that the runner stops them. */
export function heartbeat(sql: SqlStorage, instance: string, leases: readonly (Lease & { counter: number })[], now: number): Lease[] {
  const over: Lease[] = [];
  for (const { execution, epoch, counter } of leases) {
    const current = currentLease(sql, { execution, epoch }, instance);
    if (current) beat(sql, current, counter, now);
    else if (!awaitsAnswer(sql, { execution, epoch }, instance)) over.push({ execution, epoch });
  }
  return over;
}

function beat(sql: SqlStorage, current: LeaseRow, counter: number, now: number): void {
  sql.exec("UPDATE leases SET last_heartbeat = ? WHERE execution = ?", now, current.execution);
  const steps = counter - current.counter;
  if (steps <= 0) return;
  const stepMs = Math.ceil((now - current.counter_changed_at) / steps);
  sql.exec(
    "UPDATE leases SET counter = ?, counter_changed_at = ?, step_ms = max(step_ms, ?) WHERE execution = ?",
    ...[counter, now, stepMs, current.execution],
  );
}

/** Whether the result of this lease was taken: its runner waits for `committed`, or has missed it. */
export function awaitsAnswer(sql: SqlStorage, { execution, epoch }: Lease, instance: string): boolean {
  const row = executionRow(sql, execution);
  return row?.outcome === "succeeded" && row.epoch === epoch && row.winner === instance;
}

/**
 * The result of a lease lies in its staging object. `committing`: persisted, the answer comes when it is settled; `committed`: it is settled
 * already; `refused`: the lease is over.
 */
export function complete(
  sql: SqlStorage,
  lease: Lease,
  result: ExecutionResult,
  instance: string,
  now: number,
): "committing" | "committed" | "refused" {
  if (currentLease(sql, lease, instance)) {
    sql.exec("DELETE FROM leases WHERE execution = ?", lease.execution);
    conclude(sql, lease.execution, "succeeded", result, now);
    sql.exec("UPDATE executions SET winner = ? WHERE id = ?", instance, lease.execution);
    return "committing";
  }
  if (!awaitsAnswer(sql, lease, instance)) return "refused";
  return executionRow(sql, lease.execution)?.state === "done" ? "committed" : "committing";
}

/** The runner could not compute it: the end where the same input fails everywhere, else a lost attempt. False where the lease was over. */
export function fail(
  sql: SqlStorage,
  lease: Lease,
  error: JobError,
  retryable: boolean,
  instance: string,
  now: number,
  times: Times,
): boolean {
  if (!currentLease(sql, lease, instance)) return false;
  sql.exec("DELETE FROM leases WHERE execution = ?", lease.execution);
  if (retryable) loseAttempt(sql, lease.execution, error.message, now, times);
  else conclude(sql, lease.execution, "failed", error, now);
  return true;
}

/** Ends an execution that cannot be granted, for example because its parameters are not what was signed. */
export function failLeased(sql: SqlStorage, lease: Lease, error: JobError, instance: string, now: number): boolean {
  if (!currentLease(sql, lease, instance)) return false;
  returnCredit(sql, lease.execution);
  sql.exec("DELETE FROM leases WHERE execution = ?", lease.execution);
  conclude(sql, lease.execution, "failed", error, now);
  return true;
}

/** Ends every lease whose time is over. An unacknowledged grant is withdrawn, everything else is a lost attempt. */
export function expire(sql: SqlStorage, now: number, times: Times): EndedLease[] {
  const due = sql
    .exec<{ execution: string; reason: EndReason }>(
      `SELECT execution, CASE
         WHEN accepted_at IS NULL THEN 'not_acknowledged'
         WHEN attempt_deadline <= ?1 THEN 'attempt_deadline'
         WHEN last_heartbeat + ?2 <= ?1 THEN 'no_heartbeat'
         ELSE 'no_progress' END AS reason
       FROM leases
       WHERE CASE WHEN accepted_at IS NULL THEN ack_deadline <= ?1
         ELSE attempt_deadline <= ?1 OR last_heartbeat + ?2 <= ?1 OR ${stallsAt(times)} <= ?1 END`,
      ...[now, times.lease],
    )
    .toArray();
  return due.flatMap(({ execution, reason }) => lose(sql, execution, reason, now, times));
}

/** Ends a lease on our side: withdrawn where the runner never accepted it or is not to blame, lost otherwise. */
export function lose(sql: SqlStorage, execution: string, reason: EndReason, now: number, times: Times): EndedLease[] {
  const blameless = reason === "not_acknowledged" || reason === "token_revoked";
  if (blameless) {
    const ended = endedLease(sql, execution, reason);
    // A batch that isn't taken may have a member that no runner takes.
    if (reason === "not_acknowledged") partFromBatch(sql, execution);
    takeBack(sql, execution, now, times);
    return ended;
  }
  const ended = endLease(sql, execution, reason);
  loseAttempt(sql, execution, lossTexts[reason], now, times);
  return ended;
}

const lossTexts = {
  abandoned: "it was canceled",
  no_heartbeat: "its runner was not heard of any more",
  no_progress: "its computation made no progress",
  attempt_deadline: "its time was over",
  not_held: "its runner did not hold it any more",
} as const satisfies Record<Exclude<EndReason, "not_acknowledged" | "token_revoked">, string>;

/** A batch that is lost says nothing about its members: each is tried alone, and only what is lost alone counts. */
function loseAttempt(sql: SqlStorage, execution: string, why: string, now: number, times: Times): void {
  const counts = partFromBatch(sql, execution) ? 0 : 1;
  const { attempts } = sql
    .exec<{ attempts: number }>(
      `UPDATE executions SET state = 'queued', outcome = NULL, detail = NULL, winner = NULL, settle_at = NULL, settle_failures = 0,
         attempts = attempts + ? WHERE id = ? RETURNING attempts`,
      ...[counts, execution],
    )
    .one();
  if (attempts < times.maxAttempts) return;
  conclude(sql, execution, "failed", { code: "attempts_exhausted", message: `${attempts} attempts were lost; the last one: ${why}` }, now);
}

/** Persists an outcome. From here on nothing but the settlement moves the execution. */
function conclude(sql: SqlStorage, execution: string, outcome: Outcome, detail: ExecutionResult | JobError | null, now: number): void {
  sql.exec(
    "UPDATE executions SET state = 'committing', front = 0, outcome = ?, detail = ?, settle_at = ?, settle_failures = 0 WHERE id = ?",
    ...[outcome, detail && JSON.stringify(detail), now, execution],
  );
}

/** Outcomes whose settlement is due. */
export function dueSettlements(sql: SqlStorage, now: number): string[] {
  return sql
    .exec<{ id: string }>("SELECT id FROM executions WHERE state = 'committing' AND settle_at <= ? ORDER BY settle_at", now)
    .toArray()
    .map(({ id }) => id);
}

/** A settlement begins: should it never end, it is tried again after a while. Undefined where there is nothing to settle. */
export function beginSettlement(sql: SqlStorage, execution: string, now: number): ExecutionRow | undefined {
  const row = first<ExecutionRow>(sql, "SELECT * FROM executions WHERE id = ? AND state = 'committing'", execution);
  if (!row) return undefined;
  sql.exec(
    "UPDATE executions SET settle_at = ?, settle_failures = settle_failures + 1 WHERE id = ?",
    ...[now + settleDelay(row.settle_failures), execution],
  );
  return row;
}

/** D1 has the outcome: the row becomes a tombstone. */
export function settled(sql: SqlStorage, execution: string, now: number): void {
  sql.exec("UPDATE executions SET state = 'done', settle_at = NULL, done_at = ? WHERE id = ? AND state = 'committing'", now, execution);
}

/** The result could not be taken: a lost attempt, unless nobody waits for another one. */
export function resultRefused(sql: SqlStorage, execution: string, why: string, now: number, times: Times): void {
  const row = executionRow(sql, execution);
  if (row?.state !== "committing" || row.outcome !== "succeeded") return;
  if (row.abandoned === 1) conclude(sql, execution, "canceled", null, now);
  else loseAttempt(sql, execution, `its result was refused: ${why}`, now, times);
}

/**
 * D1 says that an execution is live which is over here (its database was restored, say): its outcome is settled once more. A job that waits
 * for a canceled one is told so.
 */
export function settleAgain(sql: SqlStorage, execution: string, asked: number): void {
  const row = executionRow(sql, execution);
  // What was settled since D1 was asked is no contradiction.
  if (row?.state !== "done" || row.done_at === null || row.done_at >= asked) return;
  if (row.outcome === "canceled")
    conclude(sql, execution, "failed", { code: "internal", message: "the execution was canceled before" }, asked);
  else
    sql.exec(
      "UPDATE executions SET state = 'committing', settle_at = ?, settle_failures = 0, done_at = NULL WHERE id = ?",
      asked,
      execution,
    );
}

/** Forgets tombstones, and tenants and instances that are known for nothing else. A part at a time, so that no call takes long. */
export function prune(sql: SqlStorage, now: number): void {
  const old = "SELECT seq FROM executions WHERE state = 'done' AND done_at <= ? ORDER BY done_at LIMIT 500";
  const tenants = sql
    .exec<{ tenant: string }>(`DELETE FROM executions WHERE seq IN (${old}) RETURNING tenant`, now - TOMBSTONE_MS)
    .toArray()
    .map(({ tenant }) => tenant);
  if (tenants.length === 0) return;
  const remains = "SELECT 1 FROM executions WHERE state IN ('queued', 'leased', 'committing', 'done') AND tenant = tenants.id";
  sql.exec(`DELETE FROM tenants WHERE id IN (SELECT value FROM json_each(?)) AND NOT EXISTS (${remains})`, JSON.stringify(tenants));
  sql.exec("DELETE FROM instances WHERE connected = 0 AND last_seen <= ? AND id NOT IN (SELECT instance FROM leases)", now - TOMBSTONE_MS);
}

function endedLease(sql: SqlStorage, execution: string, reason: EndReason): EndedLease[] {
  return sql
    .exec<Pick<LeaseRow, "execution" | "epoch" | "instance"> & { request_id: string }>(
      "SELECT l.execution, l.epoch, l.instance, e.request_id FROM leases l JOIN executions e ON e.id = l.execution WHERE l.execution = ?",
      execution,
    )
    .toArray()
    .map(row => ({ ...row, reason }));
}

function endLease(sql: SqlStorage, execution: string, reason: EndReason): EndedLease[] {
  const ended = endedLease(sql, execution, reason);
  sql.exec("DELETE FROM leases WHERE execution = ?", execution);
  return ended;
}

export function executionRow(sql: SqlStorage, id: string): ExecutionRow | undefined {
  return first<ExecutionRow>(sql, "SELECT * FROM executions WHERE id = ?", id);
}
