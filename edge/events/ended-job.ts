import { eq } from "drizzle-orm";
import { jobErrorSchema } from "../../shared/errors.ts";
import type { JobEvent } from "../../shared/job.ts";
import { database } from "../database.ts";
import { jobs } from "../schema.ts";

/** The columns of a job's row that say how it ended. */
export type JobEnd = Pick<typeof jobs.$inferSelect, "status" | "error" | "finished_at">;

/** The terminal event that a job's row stands for; undefined while the job is active. */
export function terminalEvent({ status, error, finished_at }: JobEnd): JobEvent | undefined {
  if (status === "active") return undefined;
  return { type: status, at: new Date(finished_at ?? 0).toISOString(), error: jobErrorSchema.nullable().parse(error) };
}

/** Looks into D1 how a job ended. `unknown` where there is no such job. */
export async function readEnd(env: { readonly DB: D1Database }, job: string): Promise<JobEvent | "active" | "unknown"> {
  const [row] = await database(env)
    .select({ status: jobs.status, error: jobs.error, finished_at: jobs.finished_at })
    .from(jobs)
    .where(eq(jobs.id, job));
  return row ? (terminalEvent(row) ?? "active") : "unknown";
}
