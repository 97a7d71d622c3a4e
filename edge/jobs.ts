import { and, eq, exists, inArray, ne, notExists, sql } from "drizzle-orm";
import { alias } from "drizzle-orm/sqlite-core";
import { AtelierError, type JobError } from "../shared/errors.ts";
import { sign } from "../shared/signing.ts";
import { type Database, database } from "./database.ts";
import { type Env, settings } from "./env.ts";
import { newId } from "./ids.ts";
import { errorFields, log } from "./log.ts";
import { executions, jobPictures, jobs } from "./schema.ts";
import type { JobPicture, JobRow, NewJob, TenantStore } from "./tenant.ts";
import type { NewTraining } from "./tenant-datasets.ts";

/** A job as D1 has it. */
export interface StoredJob {
  readonly job: JobRow;
  readonly pictures: readonly JobPicture[];
}

/**
 * Accepts a job and, where it has started executions, offers them. Accepting again under the same id (a request taken over after a crash)
 * gives the job as it was accepted the first time. D1 is what counts: an offer that is not sent now is sent by the dispatcher's sweep.
 * @throws AtelierError cache_miss where nothing may be computed and a picture is missing
 */
export async function acceptJob(
  env: Env,
  store: TenantStore,
  planned: Omit<NewJob, "pictures"> & { pictures: readonly Omit<NewJob["pictures"][number], "execution">[]; compute: boolean },
): Promise<StoredJob> {
  const started = planned.pictures.map(picture => ({ ...picture, execution: planned.compute ? newId("execution") : null }));
  const accepted = await store.accept({ ...planned, pictures: started }).catch(async (error: unknown) => {
    const earlier = await store.job(planned.id);
    if (earlier) return earlier;
    // What was cached when it was looked up may be deleted since.
    if (!planned.compute && (await store.cached(planned.pictures.map(({ hash }) => hash))).length < planned.pictures.length)
      throw new AtelierError("cache_miss");
    throw error;
  });
  if (accepted.job.status === "active")
    await announce(
      env,
      accepted.job,
      started.filter(({ execution }) => accepted.pictures.some(({ execution_id }) => execution_id === execution)),
    );
  return accepted;
}

/** Accepts a training, once under its id, and offers it. */
export async function acceptTraining(env: Env, store: TenantStore, training: NewTraining): Promise<StoredJob> {
  await store.acceptTraining(training);
  const accepted = (await store.job(training.job))!;
  if (accepted.job.status === "active") await announce(env, accepted.job, [{ execution: training.execution, hash: training.hash }]);
  return accepted;
}

/** Tells the job's events, the queue and the dispatcher. None of them can undo what D1 has accepted, so a failure is logged only. */
async function announce(env: Env, job: JobRow, started: readonly { execution: string | null; hash: string }[]): Promise<void> {
  const fields = { request_id: job.request_id, job: job.id };
  const logFailure = (what: string) => (error: unknown) =>
    log("warn", `${what} failed; the sweep will repeat it`, { ...fields, ...errorFields(error) });
  await env.JOB_EVENTS.getByName(job.id)
    .append({ v: 1, job: job.id, events: [{ type: "queued" }] })
    .catch(logFailure("announcing a job"));
  const offers = started.flatMap(({ execution, hash }) =>
    execution === null
      ? []
      : [
          signOffer(
            env,
            { id: execution, tenant_id: job.tenant_id, pool: job.pool, params_sha256: hash, request_id: job.request_id },
            job.deadline_at,
          ),
        ],
  );
  await Promise.all([
    offers.length > 0 &&
      env.OFFERS.sendBatch((await Promise.all(offers)).map(offer => ({ body: { offer } }))).catch(logFailure("sending offers")),
    env.DISPATCHER.getByName(job.pool).watch({ v: 1, deadline_at: job.deadline_at }).catch(logFailure("waking the dispatcher")),
  ]);
  log("info", "job accepted", { ...fields, tenant: job.tenant_id, pool: job.pool, executions: offers.length });
}

/** Signs the claim that an execution exists. @param expiresAt milliseconds since 1970: the deadline of a job that waits for it */
export function signOffer(
  env: Env,
  execution: { id: string; tenant_id: string; pool: string; params_sha256: string; request_id: string },
  expiresAt: number,
): Promise<string> {
  const { id, tenant_id: tenant, pool, params_sha256, request_id } = execution;
  return sign(
    "offer",
    { tenant, execution: id, pool, params_sha256, request_id, exp: Math.ceil(expiresAt / 1000) },
    settings(env).OFFER_KEY,
  );
}

/** How a job ends without a result. */
export type JobOutcome = { readonly status: "canceled"; readonly error: null } | { readonly status: "failed"; readonly error: JobError };

/**
 * Ends a live job in D1 and frees what it waited for; the executions for which no other job waits become `abandoned`.
 * A job that is terminal stays as it is: the commit that came first counts.
 * @returns the abandoned executions, which the caller hands to the pool's dispatcher (`abandon`), and whether this call ended the job
 */
export async function detachJob(env: Env, id: string, outcome: JobOutcome): Promise<{ ended: boolean; abandoned: string[] }> {
  const db = database(env);
  const [[ended], , abandoned] = await db.batch([
    db
      .update(jobs)
      .set({ status: outcome.status, error: outcome.error, finished_at: Date.now() })
      .where(and(eq(jobs.id, id), eq(jobs.status, "active")))
      .returning({ request_id: jobs.request_id }),
    db
      .update(jobPictures)
      .set({ state: outcome.status })
      .where(
        and(
          eq(jobPictures.job_id, id),
          eq(jobPictures.state, "pending"),
          exists(
            db
              .select({ one: sql`1` })
              .from(jobs)
              .where(and(eq(jobs.id, id), ne(jobs.status, "active"))),
          ),
        ),
      ),
    abandonUnawaited(db, id),
  ]);
  if (ended) {
    const { request_id } = ended;
    log("info", "job ended without a result", { request_id, job: id, status: outcome.status, code: outcome.error?.code });
    await env.JOB_EVENTS.getByName(id)
      .append({ v: 1, job: id, events: [{ type: outcome.status, error: outcome.error }] })
      .catch((error: unknown) => log("warn", "announcing a job's end failed", { request_id, job: id, ...errorFields(error) }));
  }
  return { ended: ended !== undefined, abandoned: abandoned.map(row => row.id) };
}

/** Marks this job's live executions for which no job waits any more. */
function abandonUnawaited(db: Database, job: string) {
  const waiting = alias(jobPictures, "waiting");
  const ofJob = db.select({ id: jobPictures.execution_id }).from(jobPictures).where(eq(jobPictures.job_id, job));
  return db
    .update(executions)
    .set({ state: "abandoned" })
    .where(
      and(
        inArray(executions.id, ofJob),
        eq(executions.state, "active"),
        notExists(
          db
            .select({ one: sql`1` })
            .from(waiting)
            .where(and(eq(waiting.execution_id, executions.id), eq(waiting.state, "pending"))),
        ),
      ),
    )
    .returning({ id: executions.id });
}

/** Cancels a live job and has the dispatcher stop what nobody waits for; a terminal job stays as it is. */
export async function cancelJob(env: Env, { id, pool }: { id: string; pool: string }): Promise<void> {
  const { abandoned } = await detachJob(env, id, { status: "canceled", error: null });
  if (abandoned.length === 0) return;
  await env.DISPATCHER.getByName(pool)
    .abandon({ v: 1, executions: abandoned })
    .catch((error: unknown) => log("warn", "abandoning executions failed; the sweep will repeat it", { job: id, ...errorFields(error) }));
}
