import { jobErrorSchema } from "../../shared/errors.ts";
import type { JobEvent } from "../../shared/job.ts";

/** The columns of a job's row that say how it ended. */
export interface JobEnd {
  readonly status: string;
  readonly error: unknown;
  readonly finished_at: number | null;
}

/** The terminal event that a job's row stands for; undefined while the job is active. */
export function terminalEvent(job: JobEnd): JobEvent | undefined {
  const { status, error, finished_at } = job;
  if (status !== "succeeded" && status !== "failed" && status !== "canceled") return undefined;
  return { type: status, at: new Date(finished_at ?? 0).toISOString(), error: jobErrorSchema.nullable().parse(error ?? null) };
}

/** Looks into D1 how a job ended. `unknown` where there is no such job. */
export async function readEnd(db: D1Database, job: string): Promise<JobEvent | "active" | "unknown"> {
  const row = await db
    .prepare("SELECT status, error, finished_at FROM jobs WHERE id = ?")
    .bind(job)
    .first<{ status: string; error: string | null; finished_at: number | null }>();
  if (!row) return "unknown";
  return terminalEvent({ ...row, error: row.error === null ? null : JSON.parse(row.error) }) ?? "active";
}
