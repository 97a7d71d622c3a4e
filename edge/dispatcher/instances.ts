import type { Lease } from "../../shared/protocol.ts";
import { accept, awaitsAnswer, currentLease, type EndedLease, lose } from "./store.ts";
import { first, type InstanceRow } from "./tables.ts";
import type { Times } from "./times.ts";

/** The pool's runner instances, in SQL like the executions. Leases belong to an instance, never to a socket. */

export interface Hello {
  readonly instance: string;
  readonly engine_version: number;
  readonly provider: string;
  readonly models: readonly string[];
  readonly max_batch: number;
  readonly trains?: boolean | undefined;
  readonly leases: readonly Lease[];
}
export type Verdict = Lease & { verdict: "keep" | "abandon" };
export interface Greeting {
  readonly verdicts: Verdict[];
  /** Leases that we believed it to hold. */
  readonly ended: EndedLease[];
  /** Grants whose acceptance we learn from the hello. */
  readonly accepted: Lease[];
}

/** Whether the instance may speak with this token: an instance belongs to the token that it first came with. */
export function mayGreet(sql: SqlStorage, instance: string, token: string): boolean {
  const known = first<{ token: string }>(sql, "SELECT token FROM instances WHERE id = ?", instance);
  return known === undefined || known.token === token;
}

/**
 * An instance (re)connects and names the leases that it holds. A current one is kept, and so accepted; one that is over is to be dropped; one that
 * we believed it to hold but that it doesn't name is lost, or withdrawn where it never accepted it.
 */
export function greet(sql: SqlStorage, hello: Hello, token: string, now: number, times: Times): Greeting {
  const { instance, engine_version, provider, models, max_batch } = hello;
  const verdicts = hello.leases.map(lease => ({ ...lease, verdict: verdict(sql, lease, instance) }));
  const kept = verdicts.filter(({ verdict }) => verdict === "keep");
  const accepted = kept.filter(lease => accept(sql, lease, instance, now) === "first");
  for (const { execution, epoch } of kept) {
    sql.exec("UPDATE leases SET last_heartbeat = ? WHERE execution = ? AND epoch = ?", now, execution, epoch);
  }
  const ended = leasesOf(sql, instance)
    .filter(({ execution, epoch }) => !kept.some(lease => lease.execution === execution && lease.epoch === epoch))
    .flatMap(({ execution, accepted_at }) => lose(sql, execution, accepted_at === null ? "not_acknowledged" : "not_held", now, times));
  sql.exec(
    `INSERT INTO instances (id, token, provider, engine_version, models, max_batch, trains, ready, connected, last_seen)
     VALUES (?, ?, ?, ?, ?, ?, ?, 0, 1, ?)
     ON CONFLICT (id) DO UPDATE SET provider = excluded.provider, engine_version = excluded.engine_version, models = excluded.models,
       max_batch = excluded.max_batch, trains = excluded.trains, ready = 0, connected = 1, last_seen = excluded.last_seen, paused_until = 0`,
    ...[instance, token, provider, engine_version, JSON.stringify(models), max_batch, hello.trains ? 1 : 0, now],
  );
  return { verdicts, ended, accepted: accepted.map(({ execution, epoch }) => ({ execution, epoch })) };
}

function verdict(sql: SqlStorage, lease: Lease, instance: string): "keep" | "abandon" {
  return currentLease(sql, lease, instance) || awaitsAnswer(sql, lease, instance) ? "keep" : "abandon";
}

function leasesOf(sql: SqlStorage, instance: string): { execution: string; epoch: number; accepted_at: number | null }[] {
  return sql
    .exec<{ execution: string; epoch: number; accepted_at: number | null }>(
      "SELECT execution, epoch, accepted_at FROM leases WHERE instance = ?",
      instance,
    )
    .toArray();
}

/** A message came: the instance is there. */
export function seen(sql: SqlStorage, instance: string, now: number): void {
  sql.exec("UPDATE instances SET last_seen = ? WHERE id = ?", now, instance);
}

/** How many more grants the instance takes, and what it has in memory. Grants that it has not accepted yet were not in its count. */
export function ready(sql: SqlStorage, instance: string, n: number, resident: readonly string[] = []): void {
  sql.exec(
    `UPDATE instances SET resident = ?3, ready = max(0, ?1 - (
       SELECT COUNT(DISTINCT grant_number) FROM leases WHERE instance = ?2 AND accepted_at IS NULL)) WHERE id = ?2`,
    ...[n, instance, JSON.stringify(resident)],
  );
}

/** The socket is gone. The leases stay: only time ends them. */
export function disconnected(sql: SqlStorage, instance: string): void {
  sql.exec("UPDATE instances SET connected = 0, ready = 0 WHERE id = ?", instance);
}

/** Instances that hold a socket but were not heard of for the time of a lease: taken for disconnected. */
export function silent(sql: SqlStorage, now: number, times: Times): string[] {
  const gone = sql
    .exec<{ id: string }>("SELECT id FROM instances WHERE connected = 1 AND last_seen + ? <= ?", times.lease, now)
    .toArray()
    .map(({ id }) => id);
  for (const id of gone) disconnected(sql, id);
  return gone;
}

/**
 * The object begins to run, with the sockets of these instances. Instances that lost theirs without our hearing of it (a restart or a deployment
 * drops all) could not report meanwhile: their leases get the full time to come back.
 */
export function restarted(sql: SqlStorage, connected: readonly string[], now: number): void {
  const lost = sql
    .exec<{ id: string }>(
      "SELECT id FROM instances WHERE connected = 1 AND id NOT IN (SELECT value FROM json_each(?))",
      JSON.stringify(connected),
    )
    .toArray();
  for (const { id } of lost) {
    disconnected(sql, id);
    sql.exec("UPDATE leases SET last_heartbeat = ?1, counter_changed_at = ?1 WHERE instance = ?2", now, id);
  }
}

/** A runner token is revoked: its instances are disconnected and their leases taken back. */
export function revoke(sql: SqlStorage, token: string, now: number, times: Times): EndedLease[] {
  sql.exec("INSERT INTO revoked_tokens (id) VALUES (?) ON CONFLICT DO NOTHING", token);
  const instances = sql.exec<InstanceRow>("SELECT * FROM instances WHERE token = ?", token).toArray();
  return instances.flatMap(({ id }) => {
    disconnected(sql, id);
    return leasesOf(sql, id).flatMap(({ execution }) => lose(sql, execution, "token_revoked", now, times));
  });
}

export function isRevoked(sql: SqlStorage, token: string): boolean {
  return first(sql, "SELECT id FROM revoked_tokens WHERE id = ?", token) !== undefined;
}
