import { z } from "zod";
import { type ExecutionRow, first, type InstanceRow } from "./tables.ts";
import { stallsAt, type Times } from "./times.ts";

/** Who computes what next, and when the object has to look again. */

/** One grant to be made. */
export interface Choice {
  readonly instance: string;
  /** Several where they are computed as one batch. The first is whose turn it was. */
  readonly executions: readonly string[];
  /** The execution whose turn it was, where one of its tenant that the instance is warm for goes first. */
  readonly overtaken: string | null;
}

/** How many executions of a tenant are looked at for one that an instance is warm for, per model in its memory. */
const AFFINITY_WINDOW = 8;
/** How often an execution lets others go first. */
const MOST_OVERTAKEN = 4;
/** Waiting executions among which a batch looks for its members. */
const BATCH_WINDOW = 256;

type Instance = Pick<InstanceRow, "id" | "engine_version" | "models" | "resident" | "max_batch"> & {
  /** 1: it may be given a training now. */
  readonly may_train: number;
};
type Waiting = Pick<ExecutionRow, "id" | "tenant" | "model_hash" | "refiner_hash" | "adapters" | "overtaken" | "batch_key">;
/** What an instance would get, and how warm it is for it: 0, its model would have to be loaded; 1, its refiner or an adapter; 2, nothing. */
interface Candidate {
  readonly execution: Waiting;
  readonly warmth: number;
  readonly overtaken: string | null;
}

/**
 * The next grant to make; undefined when nothing can be granted now.
 *
 * Instances with credit are asked in the order in which they last got something, those that compute a training last: they draw between its
 * steps. Each takes what was handed back uncomputed, else the oldest execution that it can compute of the tenant that was served least
 * recently, or one shortly behind that it is warm for. Of these the instance gets its own that is warmest. Its grant is then filled up with what can be computed in one batch with it, of any tenant, each tenant's first
 * before anybody's second. A turn is a grant: all tenants in it have had theirs.
 */
export function choose(sql: SqlStorage, now: number, times: Times): Choice | undefined {
  const instances = sql
    .exec<Instance>(
      `SELECT id, engine_version, models, resident, max_batch, ${mayTrain} AS may_train FROM instances
       WHERE connected = 1 AND ready > 0 AND paused_until <= ?1 AND last_seen + ?2 > ?1 ORDER BY id IN (${training}), last_granted`,
      ...[now, times.lease, times.trainingShare],
    )
    .toArray();
  let best: (Candidate & { instance: Instance }) | undefined;
  for (const instance of instances) {
    const candidate = candidateOf(sql, instance);
    if (candidate && candidate.warmth > (best?.warmth ?? -1)) best = { ...candidate, instance };
  }
  if (!best) return undefined;
  const { instance, execution, overtaken } = best;
  return { instance: instance.id, executions: [execution.id, ...companions(sql, execution, instance.max_batch - 1)], overtaken };
}

/**
 * SQL over a row of `instances`: whether it may be given a training. It says so itself, it computes none, and the trainings of the pool don't take
 * more than their share (?3) of the instances, so that pictures go on being made.
 */
const training = "SELECT l.instance FROM leases l JOIN executions e ON e.id = l.execution WHERE e.kind = 'training'";
const mayTrain = `(trains = 1 AND id NOT IN (${training}) AND (SELECT COUNT(*) FROM (${training}))
  < max(1, CAST(?3 * (SELECT COUNT(*) FROM instances WHERE connected = 1) AS INTEGER)))`;

function candidateOf(sql: SqlStorage, instance: Instance): Candidate | undefined {
  const resident = new Set(listOf(instance.resident));
  const first = handedBack(sql, instance);
  if (first) return { execution: first, warmth: warmth(first, resident), overtaken: null };
  const next = leastServed(sql, instance);
  if (!next) return undefined;
  const cold = { execution: next, warmth: warmth(next, resident), overtaken: null };
  if (cold.warmth === WARMEST || next.overtaken >= MOST_OVERTAKEN) return cold;
  return warmer(sql, instance, cold, resident) ?? cold;
}

/** An execution shortly behind that the instance is warmer for. */
function warmer(
  sql: SqlStorage,
  { engine_version, models, may_train }: Instance,
  cold: Candidate,
  resident: ReadonlySet<string>,
): Candidate | undefined {
  const { execution: next } = cold;
  const query = `SELECT ${columns} FROM executions WHERE state = 'queued' AND tenant = ?1 AND engine_version = ?2 AND model_hash = ?3
    AND ${refinerAmong("?4")} AND (?6 OR kind = 'picture') ORDER BY seq LIMIT ?5`;
  const found = listOf(models)
    .filter(model => resident.has(model))
    .flatMap(model => sql.exec<Waiting>(query, next.tenant, engine_version, model, models, AFFINITY_WINDOW, may_train).toArray())
    .map(execution => ({ execution, warmth: warmth(execution, resident), overtaken: next.id }))
    .filter(candidate => candidate.warmth > cold.warmth);
  return found.sort((a, b) => b.warmth - a.warmth)[0];
}

const WARMEST = 2;
function warmth({ model_hash, refiner_hash, adapters }: Waiting, resident: ReadonlySet<string>): number {
  if (!resident.has(model_hash)) return 0;
  return [...listOf(adapters), refiner_hash || model_hash].every(part => resident.has(part)) ? WARMEST : 1;
}

const hashes = z.array(z.string());
function listOf(json: string): string[] {
  return hashes.parse(JSON.parse(json));
}

const columns = "id, tenant, model_hash, refiner_hash, adapters, overtaken, batch_key";

/** SQL over a row of `executions`: whether a JSON list of models has its refiner, if it needs one. */
function refinerAmong(models: string): string {
  return `(refiner_hash = '' OR refiner_hash IN (SELECT value FROM json_each(${models})))`;
}

function handedBack(sql: SqlStorage, { engine_version, models, may_train }: Instance): Waiting | undefined {
  const query = `SELECT ${columns} FROM executions WHERE state = 'queued' AND front = 1 AND engine_version = ?1
    AND model_hash IN (SELECT value FROM json_each(?2)) AND ${refinerAmong("?2")} AND (?3 OR kind = 'picture') ORDER BY seq LIMIT 1`;
  return first<Waiting>(sql, query, engine_version, models, may_train);
}

function leastServed(sql: SqlStorage, { engine_version, models, may_train }: Instance): Waiting | undefined {
  // Looks into the index once per waiting tenant and once more per model, however many executions wait or tenants are known.
  const oldest = `SELECT min(seq) FROM executions WHERE state = 'queued' AND tenant = tenants.id AND engine_version = ?1 AND model_hash = value
    AND ${refinerAmong("?2")} AND (?3 OR kind = 'picture')`;
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
    SELECT ${columns} FROM executions WHERE seq = (SELECT seq FROM heads WHERE seq IS NOT NULL ORDER BY served, arrived LIMIT 1)`;
  return first<Waiting>(sql, query, engine_version, models, may_train);
}

/** What is computed in one batch with an execution: its key names engine version and models, too. */
function companions(sql: SqlStorage, { id, tenant, batch_key }: Waiting, most: number): string[] {
  if (batch_key === "" || most < 1) return [];
  const query = `
    WITH mates AS (
      SELECT id, tenant, front, seq FROM executions WHERE state = 'queued' AND batch_key = ?1 AND batch_key <> '' AND id <> ?2 ORDER BY seq LIMIT ${BATCH_WINDOW}
    ),
    rounds AS (
      SELECT id, tenant, row_number() OVER (PARTITION BY tenant ORDER BY front DESC, seq) + (tenant = ?3) AS round FROM mates
    )
    SELECT rounds.id FROM rounds JOIN tenants ON tenants.id = rounds.tenant ORDER BY round, served, tenants.rowid LIMIT ?4`;
  return sql
    .exec<{ id: string }>(query, batch_key, id, tenant, most)
    .toArray()
    .map(row => row.id);
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
