import { z } from "zod";
import { type JobError, jobErrorSchema } from "../shared/errors.ts";
import { sameUlid } from "../shared/names.ts";
import { mediaTypes, pictureFormats } from "../shared/picture.ts";
import { type ExecutionResult, type Lease, type Result, stagingKey, trainingStagingKey } from "../shared/protocol.ts";
import { executionKinds } from "../shared/signing.ts";
import { fileEnding } from "./artifacts.ts";
import type { Env } from "./env.ts";
import { errorFields, log } from "./log.ts";
import { commitTraining } from "./settle-training.ts";
import { moveFile } from "./staged-files.ts";

/**
 * Brings what the dispatcher has decided to R2 and D1, once. Every step may run again: the dispatcher repeats a settlement until it ends.
 * Each D1 batch is keyed by the execution and conditional, so that it never undoes what came first.
 */
export type Settleable = { readonly execution: string; readonly epoch: number } & (
  | { readonly outcome: "succeeded"; readonly result: ExecutionResult }
  | { readonly outcome: "failed"; readonly error: JobError }
  | { readonly outcome: "canceled" }
);

/**
 * `refused`: the result can't be taken, and nothing of it was. `abandoned`: executions that no job waits for any more.
 * `request_id`: of a canceled execution, which the dispatcher doesn't know where its offer has not arrived.
 */
export type Settlement =
  | { readonly verdict: "settled"; readonly abandoned: readonly string[]; readonly request_id?: string }
  | { readonly verdict: "refused"; readonly reason: string };

/** @throws where R2 or D1 cannot be reached: to be tried again. */
export async function settle(env: Env, settleable: Settleable): Promise<Settlement> {
  const { execution } = settleable;
  if (settleable.outcome === "canceled") {
    const request_id = await markCanceled(env, execution);
    return { verdict: "settled", abandoned: [], ...(request_id !== undefined && { request_id }) };
  }
  if (settleable.outcome === "failed") {
    const abandoned = await markFailed(env, settleable);
    await announceEnd(env, execution);
    return { verdict: "settled", abandoned };
  }
  const { epoch, result } = settleable;
  const lease = { execution, epoch };
  const refused = await ("kind" in result ? commitTraining(env, { ...lease, result }) : commit(env, { ...lease, result }));
  if (refused !== undefined) return { verdict: "refused", reason: refused };
  const staged =
    "kind" in result ? result.files.map(({ path }) => trainingStagingKey(execution, epoch, path)) : [stagingKey(execution, epoch)];
  await removeStaged(env, lease, staged);
  await announceEnd(env, execution);
  return { verdict: "settled", abandoned: [] };
}

const executionSchema = z.object({
  tenant_id: z.string(),
  request_hash: z.string(),
  model_hash: z.string(),
  state: z.enum(["active", "abandoned", "succeeded", "failed", "canceled"]),
  kind: z.enum(executionKinds),
  format: z.enum(pictureFormats).nullable(),
  width: z.number().nullable(),
  height: z.number().nullable(),
});
type Execution = z.infer<typeof executionSchema>;

async function loadExecution(env: Env, id: string): Promise<Execution | undefined> {
  const row = await env.DB.prepare(
    `SELECT tenant_id, request_hash, model_hash, state, kind, json_extract(params, '$.format') AS format,
       round(json_extract(params, '$.width') * coalesce(json_extract(params, '$.upscale.scale'), 1)) AS width,
       round(json_extract(params, '$.height') * coalesce(json_extract(params, '$.upscale.scale'), 1)) AS height FROM executions WHERE id = ?`,
  )
    .bind(id)
    .first();
  return row === null ? undefined : executionSchema.parse(row);
}

/** Moves the staged file to its place, then says so in D1. @returns why the result is refused, if it is. */
async function commit(env: Env, { execution: id, epoch, result }: Lease & { result: Result }): Promise<string | undefined> {
  const execution = await loadExecution(env, id);
  // Terminal in D1: done before, by an attempt of ours that didn't hear of it.
  if (!execution || (execution.state !== "active" && execution.state !== "abandoned")) return undefined;
  if (execution.kind !== "picture" || execution.format === null) return `expected the result of a ${execution.kind}, got a picture`;
  if (result.width !== execution.width || result.height !== execution.height) {
    return `expected a picture of ${execution.width} x ${execution.height} pixels, got ${result.width} x ${result.height}`;
  }
  const mediaType = mediaTypes[execution.format];
  const key = `pictures/${execution.tenant_id}/${id}.${fileEnding(mediaType)}`;
  const refused = await moveFile(env.BUCKET, stagingKey(id, epoch), key, result, mediaType);
  if (refused !== undefined) return refused;
  await markSucceeded(env, execution, { id, epoch, key, mediaType, result });
  return undefined;
}

interface Committed {
  readonly id: string;
  readonly epoch: number;
  readonly key: string;
  readonly mediaType: string;
  readonly result: Result;
}

/**
 * Commit beats cancel: an abandoned execution succeeds too, only that no job has it; the cache does. Where every job that asked for it was
 * deleted meanwhile, the picture goes nowhere, and its file is swept up as an orphan.
 */
async function markSucceeded(
  env: Env,
  { tenant_id, request_hash, model_hash }: Execution,
  { id, epoch, key, mediaType, result }: Committed,
): Promise<void> {
  const now = Date.now();
  const picture = sameUlid(id, "picture");
  const { sha256, bytes, width, height } = result;
  const run = (query: string, ...values: (string | number)[]) => env.DB.prepare(query).bind(...values);
  await env.DB.batch([
    run(
      "UPDATE executions SET state = 'succeeded', epoch = ?2, finished_at = ?3 WHERE id = ?1 AND state IN ('active', 'abandoned')",
      id,
      epoch,
      now,
    ),
    run(
      `INSERT INTO pictures (id, tenant_id, execution_id, request_hash, model_hash, r2_key, sha256, bytes, width, height, media_type, created_at)
       SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12
       WHERE EXISTS (SELECT 1 FROM executions WHERE id = ?3 AND state = 'succeeded' AND epoch = ?13)
       AND EXISTS (SELECT 1 FROM job_pictures WHERE execution_id = ?3) ON CONFLICT DO NOTHING`,
      ...[picture, tenant_id, id, request_hash, model_hash, key, sha256, bytes, width, height, mediaType, now, epoch],
    ),
    // What was made with a model or adapter that was deleted meanwhile stays out of the cache.
    run(
      `INSERT INTO cache_entries (tenant_id, request_hash, picture_id)
       SELECT tenant_id, request_hash, id FROM pictures p WHERE id = ? AND model_hash IN (SELECT hash FROM models)
       AND NOT EXISTS (SELECT 1 FROM execution_parts x WHERE x.execution_id = p.execution_id AND x.hash NOT IN (SELECT hash FROM models)
         AND NOT EXISTS (SELECT 1 FROM adapters a WHERE a.hash = x.hash AND (a.tenant_id = p.tenant_id OR a.visibility = 'public')))
       ON CONFLICT (tenant_id, request_hash) DO UPDATE SET picture_id = excluded.picture_id`,
      picture,
    ),
    run(
      `UPDATE job_pictures SET state = 'succeeded', picture_id = ?2
       WHERE execution_id = ?1 AND state = 'pending' AND EXISTS (SELECT 1 FROM pictures WHERE id = ?2)`,
      id,
      picture,
    ),
    run(
      `UPDATE jobs SET status = 'succeeded', finished_at = ?2
       WHERE status = 'active' AND id IN (SELECT job_id FROM job_pictures WHERE execution_id = ?1)
       AND NOT EXISTS (SELECT 1 FROM job_pictures p WHERE p.job_id = jobs.id AND p.state <> 'succeeded')`,
      id,
      now,
    ),
  ]);
}

/** Fails the execution and the jobs that wait for it; their other pictures are given up. @returns executions that nobody waits for any more */
async function markFailed(env: Env, { execution, epoch, error }: { execution: string; epoch: number; error: JobError }): Promise<string[]> {
  const now = Date.now();
  const run = (query: string, ...values: (string | number)[]) => env.DB.prepare(query).bind(execution, ...values);
  const jobs = "SELECT job_id FROM job_pictures WHERE execution_id = ?1";
  const text = JSON.stringify(error);
  const results = await env.DB.batch<{ id: string }>([
    run(
      "UPDATE executions SET state = 'failed', epoch = ?2, error = ?3, finished_at = ?4 WHERE id = ?1 AND state IN ('active', 'abandoned')",
      epoch,
      text,
      now,
    ),
    run(`UPDATE job_pictures SET state = 'failed' WHERE execution_id = ?1 AND state = 'pending'
         AND EXISTS (SELECT 1 FROM executions WHERE id = ?1 AND state = 'failed')`),
    run(
      `UPDATE jobs SET status = 'failed', error = ?2, finished_at = ?3 WHERE status = 'active'
       AND id IN (SELECT job_id FROM job_pictures WHERE execution_id = ?1 AND state = 'failed')`,
      text,
      now,
    ),
    run(`UPDATE job_pictures SET state = 'canceled' WHERE state = 'pending' AND job_id IN (${jobs})
         AND EXISTS (SELECT 1 FROM jobs WHERE id = job_pictures.job_id AND status = 'failed')`),
    run(`UPDATE executions SET state = 'abandoned' WHERE state = 'active'
         AND id IN (SELECT execution_id FROM job_pictures WHERE job_id IN (${jobs}))
         AND NOT EXISTS (SELECT 1 FROM job_pictures p WHERE p.execution_id = executions.id AND p.state = 'pending')`),
    run(`SELECT id FROM executions WHERE state = 'abandoned' AND id IN (SELECT execution_id FROM job_pictures WHERE job_id IN (${jobs}))`),
  ]);
  return results.at(-1)?.results.map(({ id }) => id) ?? [];
}

async function markCanceled(env: Env, execution: string): Promise<string | undefined> {
  const query = "UPDATE executions SET state = 'canceled', finished_at = ? WHERE id = ? AND state = 'abandoned' RETURNING request_id";
  const row = await env.DB.prepare(query).bind(Date.now(), execution).first<{ request_id: string }>();
  return row?.request_id;
}

/** What stays behind is swept up as an orphan. */
async function removeStaged(env: Env, { execution, epoch }: Lease, keys: string[]): Promise<void> {
  try {
    if (keys.length > 0) await env.BUCKET.delete(keys);
  } catch (error) {
    log("warn", "staged files not deleted", { execution, epoch, ...errorFields(error) });
  }
}

interface Waiting {
  readonly job_id: string;
  readonly idx: number;
  readonly state: "succeeded" | "failed";
  readonly picture_id: string | null;
  readonly status: "active" | "succeeded" | "failed" | "canceled";
  readonly error: string | null;
}

/** Tells the jobs that waited for an execution. Clients that miss it find the end in D1. */
async function announceEnd(env: Env, execution: string): Promise<void> {
  await announce(env, execution, "p.state IN ('succeeded', 'failed')", ({ picture_id, idx, status, error }) => [
    ...(picture_id !== null ? [{ type: "picture", index: idx }] : []),
    ...(status === "active" ? [] : [{ type: status, error: error === null ? null : jobErrorSchema.parse(JSON.parse(error)) }]),
  ]);
}

/** Tells the jobs that wait for an execution that a runner computes it. */
export async function announceRunning(env: Env, { execution, epoch }: Lease): Promise<void> {
  await announce(env, execution, "p.state = 'pending'", () => [{ type: "running", execution, epoch }]);
}

async function announce(env: Env, execution: string, which: string, events: (waiting: Waiting) => unknown[]): Promise<void> {
  try {
    const { results } = await env.DB.prepare(
      `SELECT p.job_id, p.idx, p.state, p.picture_id, j.status, j.error FROM job_pictures p JOIN jobs j ON j.id = p.job_id WHERE p.execution_id = ? AND ${which}`,
    )
      .bind(execution)
      .all<Waiting>();
    const told = results.map(waiting =>
      env.JOB_EVENTS.getByName(waiting.job_id).append({ v: 1, job: waiting.job_id, events: events(waiting) }),
    );
    await Promise.all(told);
  } catch (error) {
    log("warn", "events not told to every job", { execution, ...errorFields(error) });
  }
}
