import { first } from "./tables.ts";
import { stallsAt, type Times } from "./times.ts";

/** Who computes what next, and when the object has to look again. */

export interface Choice {
  readonly execution: string;
  readonly instance: string;
}

/**
 * The next execution to grant, and the instance that gets it; undefined when nothing can be granted now.
 * Instances with credit are asked in the order in which they last got something. Each takes what was handed back uncomputed, else the oldest
 * execution that it can compute of the tenant that was served least recently.
 */
export function choose(sql: SqlStorage, now: number, times: Times): Choice | undefined {
  const instances = sql
    .exec<{ id: string; engine_version: number; models: string }>(
      `SELECT id, engine_version, models FROM instances
       WHERE connected = 1 AND ready > 0 AND paused_until <= ?1 AND last_seen + ?2 > ?1 ORDER BY last_granted`,
      ...[now, times.lease],
    )
    .toArray();
  for (const { id, engine_version, models } of instances) {
    const execution = handedBack(sql, engine_version, models) ?? leastServed(sql, engine_version, models);
    if (execution !== undefined) return { execution, instance: id };
  }
  return undefined;
}

function handedBack(sql: SqlStorage, engineVersion: number, models: string): string | undefined {
  const query = `SELECT id FROM executions WHERE state = 'queued' AND front = 1 AND engine_version = ?1
    AND model_hash IN (SELECT value FROM json_each(?2)) ORDER BY seq LIMIT 1`;
  return first<{ id: string }>(sql, query, engineVersion, models)?.id;
}

function leastServed(sql: SqlStorage, engineVersion: number, models: string): string | undefined {
  // Looks into the index once per waiting tenant and once more per model, however many executions wait or tenants are known.
  const oldest =
    "SELECT min(seq) FROM executions WHERE state = 'queued' AND tenant = tenants.id AND engine_version = ?1 AND model_hash = value";
  const query = `
    WITH RECURSIVE waiting (tenant) AS (
      SELECT min(tenant) FROM executions WHERE state = 'queued'
      UNION ALL
      SELECT (SELECT min(tenant) FROM executions WHERE state = 'queued' AND tenant > waiting.tenant) FROM waiting WHERE tenant IS NOT NULL
    ),
    heads AS (
      SELECT served, tenants.rowid AS arrived, (SELECT min((${oldest})) FROM json_each(?2)) AS seq
      FROM waiting JOIN tenants ON tenants.id = waiting.tenant
    )
    SELECT id FROM executions WHERE seq = (SELECT seq FROM heads WHERE seq IS NOT NULL ORDER BY served, arrived LIMIT 1)`;
  return first<{ id: string }>(sql, query, engineVersion, models)?.id;
}

/** The earliest time at which something falls due without anybody calling; null when nothing will. */
export function nextDue(sql: SqlStorage, now: number, times: Times): number | null {
  const query = `
    SELECT min(due) AS due FROM (
      SELECT min(CASE WHEN accepted_at IS NULL THEN ack_deadline ELSE min(attempt_deadline, last_heartbeat + ?1, ${stallsAt(times)}) END) AS due FROM leases
      UNION ALL SELECT min(settle_at) FROM executions WHERE state = 'committing'
      UNION ALL SELECT min(last_seen + ?1) FROM instances WHERE connected = 1
      UNION ALL SELECT min(paused_until) FROM instances WHERE connected = 1 AND ready > 0 AND paused_until > ?2
        AND EXISTS (SELECT 1 FROM executions WHERE state = 'queued')
      UNION ALL SELECT sweep_at FROM pool
    )`;
  return sql.exec<{ due: number | null }>(query, times.lease, now).one().due;
}
