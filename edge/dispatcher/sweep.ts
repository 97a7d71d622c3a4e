import { ENGINE_VERSION } from "../../shared/engine.ts";
import { type Env, settings } from "../env.ts";
import { detachJob, signOffer } from "../jobs.ts";
import { log } from "../log.ts";
import { executionRow, settleAgain } from "./store.ts";
import { canTake } from "./views.ts";

/** Rows of one kind that one sweep handles; also the most messages that a queue takes at once. */
const PAGE = 100;

/** When a sweep goes on that did not see everything, in milliseconds. */
const NEXT_PAGE_MS = 1000;

/** Where the next sweep goes on among the live executions. */
export interface Cursor {
  readonly created_at: number;
  readonly id: string;
}
export const FROM_THE_START: Cursor = { created_at: 0, id: "" };

export interface Swept {
  /** Executions that no job waits for any more. */
  readonly abandoned: string[];
  /** When to sweep again; null: nothing of this pool is live in D1. */
  readonly next: number | null;
  readonly cursor: Cursor;
}

/**
 * Compares a pool's dispatcher with D1, which holds what was accepted: ends jobs whose deadline is over, offers live executions again that never
 * arrived, and finds abandoned ones. Safe to run at any time.
 */
export async function sweepPool(env: Env, sql: SqlStorage, pool: string, cursor: Cursor, now: number): Promise<Swept> {
  const overdue = await endOverdueJobs(env, sql, pool, now);
  const live = await reviewLive(env, sql, pool, cursor, now);
  const { results } = await env.DB.prepare("SELECT id FROM executions WHERE pool = ? AND state = 'abandoned' ORDER BY created_at LIMIT ?")
    .bind(pool, PAGE)
    .all<{ id: string }>();
  const abandoned = results.map(({ id }) => id);
  const more = live.offered === PAGE || overdue === PAGE || abandoned.length === PAGE;
  return { abandoned, next: more ? now + NEXT_PAGE_MS : await nextSweep(env, pool, now), cursor: live.cursor };
}

async function nextSweep(env: Env, pool: string, now: number): Promise<number | null> {
  const live = await env.DB.prepare(
    `SELECT (SELECT MIN(deadline_at) FROM jobs WHERE pool = ?1 AND status = 'active') AS deadline,
       EXISTS (SELECT 1 FROM executions WHERE pool = ?1 AND state IN ('active', 'abandoned')) AS executions`,
  )
    .bind(pool)
    .first<{ deadline: number | null; executions: number }>();
  if (!live || (live.deadline === null && live.executions === 0)) return null;
  return Math.min(live.deadline ?? Number.MAX_SAFE_INTEGER, now + settings(env).SWEEP_MS);
}

async function endOverdueJobs(env: Env, sql: SqlStorage, pool: string, now: number): Promise<number> {
  const { results } = await env.DB.prepare(
    "SELECT id, model_hash, request_id FROM jobs WHERE pool = ? AND status = 'active' AND deadline_at <= ? ORDER BY deadline_at LIMIT ?",
  )
    .bind(pool, now, PAGE)
    .all<{ id: string; model_hash: string; request_id: string }>();
  for (const { id, model_hash, request_id } of results) {
    const error = (await lacksRunner(env, sql, id, model_hash))
      ? ({ code: "no_runner", message: "No runner was connected that could take the job." } as const)
      : ({ code: "deadline_exceeded", message: "The job did not end before its deadline." } as const);
    // What it abandons is found by this sweep, among all that is abandoned.
    await detachJob(env, id, { status: "failed", error });
    log("info", "deadline passed", { job: id, code: error.code, request_id });
  }
  return results.length;
}

/** Whether nothing of the job was ever given to a runner, and none is there that could take it all. */
async function lacksRunner(env: Env, sql: SqlStorage, job: string, model_hash: string): Promise<boolean> {
  const { results } = await env.DB.prepare("SELECT execution_id FROM job_pictures WHERE job_id = ? AND execution_id IS NOT NULL")
    .bind(job)
    .all<{ execution_id: string }>();
  const known = results.map(({ execution_id }) => executionRow(sql, execution_id));
  if (known.some(row => row !== undefined && row.epoch > 0)) return false;
  return known.some(row => !canTake(sql, row ?? { model_hash, refiner_hash: "", kind: "picture" }, ENGINE_VERSION));
}

interface LiveExecution extends Cursor {
  readonly tenant_id: string;
  readonly pool: string;
  readonly params_sha256: string;
  readonly request_id: string;
  /** Of the last job that waits for it; null where none does. */
  readonly deadline_at: number | null;
}

/** Looks at a page of the executions that D1 calls live: offers those that never arrived again. Young ones may still be on their way. */
async function reviewLive(
  env: Env,
  sql: SqlStorage,
  pool: string,
  cursor: Cursor,
  now: number,
): Promise<{ offered: number; cursor: Cursor }> {
  const { results } = await env.DB.prepare(
    `SELECT id, tenant_id, pool, params_sha256, request_id, created_at,
       (SELECT MAX(j.deadline_at) FROM job_pictures p JOIN jobs j ON j.id = p.job_id WHERE p.execution_id = executions.id AND p.state = 'pending') AS deadline_at
     FROM executions WHERE pool = ?1 AND state = 'active' AND created_at <= ?2 AND (created_at, id) > (?3, ?4) ORDER BY created_at, id LIMIT ?5`,
  )
    .bind(pool, now - settings(env).SWEEP_MS, cursor.created_at, cursor.id, PAGE)
    .all<LiveExecution>();
  for (const { id } of results) settleAgain(sql, id, now);
  const missing = results.filter(({ id }) => !executionRow(sql, id));
  const offers = await Promise.all(
    missing.flatMap(execution => (execution.deadline_at === null ? [] : signOffer(env, execution, execution.deadline_at))),
  );
  if (offers.length > 0) await env.OFFERS.sendBatch(offers.map(offer => ({ body: { offer } })));
  for (const { id, request_id } of missing) log("info", "offered again", { execution: id, request_id });
  await abandonUnawaited(env, results);
  return { offered: missing.length, cursor: results.length < PAGE ? FROM_THE_START : results.at(-1)! };
}

/** A live execution that no job waits for (its job's rows were deleted, say) would stay for ever. */
async function abandonUnawaited(env: Env, executions: readonly LiveExecution[]): Promise<void> {
  const unawaited = executions.filter(({ deadline_at }) => deadline_at === null);
  if (unawaited.length === 0) return;
  await env.DB.batch(
    unawaited.map(({ id }) =>
      env.DB.prepare(
        `UPDATE executions SET state = 'abandoned' WHERE id = ?1 AND state = 'active'
         AND NOT EXISTS (SELECT 1 FROM job_pictures WHERE execution_id = ?1 AND state = 'pending')`,
      ).bind(id),
    ),
  );
}
