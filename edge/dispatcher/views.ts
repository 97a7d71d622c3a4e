import type { PoolStatus } from "../../shared/admin.ts";
import type { ExecutionView } from "./rpc.ts";
import { executionRow } from "./store.ts";
import { type ExecutionRow, type ExecutionState, first, type InstanceRow } from "./tables.ts";

/** What others may see of a pool. */

const shown = { queued: "queued", leased: "running", committing: "committing", done: "done" } as const satisfies Record<
  ExecutionState,
  ExecutionView["state"]
>;

/** An execution's live state. `position` counts the executions that come before it if nothing else arrives. */
export function describeExecution(sql: SqlStorage, execution: string): ExecutionView {
  const row = executionRow(sql, execution);
  if (!row) return { execution, state: "unknown", position: null, no_runner: null, epoch: 0 };
  const queued = row.state === "queued";
  return {
    execution,
    state: shown[row.state],
    position: queued ? position(sql, row) : null,
    no_runner: queued && !canTake(sql, row, row.engine_version),
    epoch: row.epoch,
  };
}

/** Tenants take turns, the least recently served first: before the k-th of a tenant come k - 1 turns of everybody, and those served longer ago. */
function position(sql: SqlStorage, row: ExecutionRow): number {
  const query = `
    WITH mine AS (SELECT served, rowid AS arrived, (
        SELECT COUNT(*) FROM executions WHERE state = 'queued' AND tenant = ?1 AND (front > ?2 OR (front = ?2 AND seq < ?3))
      ) AS before FROM tenants WHERE id = ?1),
    others AS (SELECT t.served, t.rowid AS arrived, COUNT(*) AS waiting
      FROM executions e JOIN tenants t ON t.id = e.tenant WHERE e.state = 'queued' AND e.tenant <> ?1 GROUP BY e.tenant)
    SELECT mine.before + coalesce((
      SELECT SUM(min(waiting, mine.before + ((others.served, others.arrived) < (mine.served, mine.arrived)))) FROM others
    ), 0) AS position FROM mine`;
  return sql.exec<{ position: number }>(query, row.tenant, row.front, row.seq).one().position;
}

/** Whether an instance is connected that can compute with this model, and with this refiner where there is one, and trains where that is asked. */
export function canTake(
  sql: SqlStorage,
  { model_hash, refiner_hash, kind }: Pick<ExecutionRow, "model_hash" | "refiner_hash" | "kind">,
  engineVersion: number,
): boolean {
  const query = `SELECT id FROM instances WHERE connected = 1 AND engine_version = ?1
    AND EXISTS (SELECT 1 FROM json_each(models) WHERE value = ?2)
    AND (?3 = '' OR EXISTS (SELECT 1 FROM json_each(models) WHERE value = ?3)) AND (?4 = 'picture' OR trains = 1)`;
  return first(sql, query, engineVersion, model_hash, refiner_hash, kind) !== undefined;
}

/** The pool as an operator sees it. */
export function poolStatus(sql: SqlStorage, pool: string): PoolStatus {
  const instances = sql
    .exec<InstanceRow & { leases: number }>(
      "SELECT *, (SELECT COUNT(*) FROM leases WHERE instance = instances.id) AS leases FROM instances WHERE connected = 1 ORDER BY id",
    )
    .toArray();
  const runners = instances.map(({ id, token, provider, models, ready, leases, last_seen }) => ({
    ...{ instance: id, token, provider, ready, leases, last_seen },
    models: sql
      .exec<{ value: string }>("SELECT value FROM json_each(?)", models)
      .toArray()
      .map(({ value }) => value),
  }));
  const count = (state: ExecutionState) => sql.exec<{ n: number }>("SELECT COUNT(*) AS n FROM executions WHERE state = ?", state).one().n;
  return { pool, runners, queued: count("queued"), leased: count("leased"), committing: count("committing") };
}
