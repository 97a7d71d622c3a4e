import { env } from "cloudflare:workers";
import { ulid } from "ulid";

/** Ids of one made-up job, and its row in D1. */
export async function insertJob(fields: { tenant?: string; status?: string; error?: unknown; finished_at?: number | null } = {}) {
  const id = ulid();
  const job = `job_${id}`;
  const tenant = fields.tenant ?? `ten_${ulid()}`;
  await env.DB.prepare(
    `INSERT INTO jobs (id, tenant_id, kind, pool, model_hash, request, request_id, status, error, created_at, deadline_at, finished_at)
     VALUES (?, ?, 'generation', 'default', ?, '{}', ?, ?, ?, ?, ?, ?)`,
  )
    .bind(
      job,
      tenant,
      `sha256:${"0".repeat(64)}`,
      `req_${ulid()}`,
      fields.status ?? "active",
      fields.error === undefined ? null : JSON.stringify(fields.error),
      Date.now(),
      Date.now() + 60_000,
      fields.finished_at ?? null,
    )
    .run();
  return { job, tenant, execution: `exe_${id}` };
}

/** Ends a job's row behind the events object's back, as a lost notification does. */
export async function endJob(job: string, status: string, finished_at: number, error: unknown = null): Promise<void> {
  await env.DB.prepare("UPDATE jobs SET status = ?, finished_at = ?, error = ? WHERE id = ?")
    .bind(status, finished_at, error === null ? null : JSON.stringify(error), job)
    .run();
}
