import { and, desc, eq, inArray, lt, type SQL, sql } from "drizzle-orm";
import type { ResolvedRequest } from "../shared/generation.ts";
import type { Database } from "./database.ts";
import type { PlannedPicture } from "./generation.ts";
import { cacheEntries, executionParts, executions, jobPictures, jobs, pictures } from "./schema.ts";
import { tenantDatasets } from "./tenant-datasets.ts";
import { among, tenantFiles } from "./tenant-files.ts";

export type JobRow = typeof jobs.$inferSelect;
export type PictureRow = typeof pictures.$inferSelect;
export type JobPictureRow = typeof jobPictures.$inferSelect;
/** A picture of a job, and the file behind it once there is one. */
export interface JobPicture extends JobPictureRow {
  readonly file: PictureRow | null;
}

/** A job about to be accepted. */
export interface NewJob {
  readonly id: string;
  readonly pool: string;
  readonly modelHash: string;
  readonly request: ResolvedRequest;
  readonly requestId: string;
  readonly createdAt: number;
  readonly deadlineAt: number;
  /** Each with the id of the execution to start where nothing can be joined; null where nothing may be computed. */
  readonly pictures: readonly (PlannedPicture & { readonly execution: string | null })[];
  /** Neither cached nor joined, and not to be joined. */
  readonly exclusive: boolean;
}

export type TenantStore = ReturnType<typeof tenantStore>;

/**
 * Everything that a client's request may read or write in D1, seen through one tenant. This and tenant-files.ts are the one place where such
 * queries are built: each carries the tenant, and another tenant's row is as absent as one that never was.
 */
export function tenantStore(db: Database, tenant: string) {
  // Two statements instead of a join: D1 gives a batch's rows as objects, in which columns of the same name would fall into one.
  const ofJobs = (ids: readonly string[]) => and(eq(jobPictures.tenant_id, tenant), among(jobPictures.job_id, ids));
  const pictureRows = (ids: readonly string[]) =>
    [
      db.select().from(jobPictures).where(ofJobs(ids)).orderBy(jobPictures.job_id, jobPictures.idx),
      db
        .select()
        .from(pictures)
        .where(
          and(
            eq(pictures.tenant_id, tenant),
            inArray(pictures.id, db.select({ id: jobPictures.picture_id }).from(jobPictures).where(ofJobs(ids))),
          ),
        ),
    ] as const;
  const jobRow = (id: string) =>
    db
      .select()
      .from(jobs)
      .where(and(eq(jobs.tenant_id, tenant), eq(jobs.id, id)));

  return {
    tenant,
    ...tenantFiles(db, tenant),
    ...tenantDatasets(db, tenant),

    /** A job and its pictures by index. */
    async job(id: string): Promise<{ job: JobRow; pictures: JobPicture[] } | undefined> {
      const [[job], rows, files] = await db.batch([jobRow(id), ...pictureRows([id])]);
      return job && { job, pictures: withFiles(rows, files) };
    },

    /** Jobs of a kind, newest first, older than the one named. */
    async jobs(kind: JobRow["kind"], limit: number, before?: string): Promise<{ job: JobRow; pictures: JobPicture[] }[]> {
      const page = await db
        .select()
        .from(jobs)
        .where(and(eq(jobs.tenant_id, tenant), eq(jobs.kind, kind), before === undefined ? undefined : lt(jobs.id, before)))
        .orderBy(desc(jobs.id))
        .limit(limit);
      if (page.length === 0) return [];
      const [rows, files] = await db.batch([...pictureRows(page.map(({ id }) => id))]);
      return page.map(job => ({
        job,
        pictures: withFiles(
          rows.filter(({ job_id }) => job_id === job.id),
          files,
        ),
      }));
    },

    async picture(id: string): Promise<PictureRow | undefined> {
      return (await this.pictures([id]))[0];
    },

    /** Those of these pictures that there are. */
    pictures(ids: readonly string[]): Promise<PictureRow[]> {
      return db
        .select()
        .from(pictures)
        .where(and(eq(pictures.tenant_id, tenant), among(pictures.id, ids)));
    },

    /** The cached pictures among these request hashes. */
    cached(hashes: readonly string[]): Promise<PictureRow[]> {
      return db
        .select(columnsOf(pictures))
        .from(cacheEntries)
        .innerJoin(pictures, eq(pictures.id, cacheEntries.picture_id))
        .where(and(eq(cacheEntries.tenant_id, tenant), eq(pictures.tenant_id, tenant), inArray(cacheEntries.request_hash, [...hashes])));
    },

    /** Forgets cache entries of pictures whose object is gone, unless a newer picture has taken the entry meanwhile. */
    async uncache(pictureIds: readonly string[]): Promise<void> {
      await db.delete(cacheEntries).where(and(eq(cacheEntries.tenant_id, tenant), inArray(cacheEntries.picture_id, [...pictureIds])));
    },

    /**
     * Accepts a job in one transaction: each picture is taken from the cache, joins a live execution, or gets one of its own, and which of the
     * three is decided inside the transaction, so that no commit or cancel can come between look-up and acceptance.
     * @throws where the job's id is taken, or a picture may not be computed and is not cached (a NOT NULL column stays empty); nothing is kept
     */
    async accept(job: NewJob): Promise<{ job: JobRow; pictures: JobPicture[] }> {
      const [, , , , , rows, shown, files] = await db.batch([
        db.insert(jobs).values({
          id: job.id,
          tenant_id: tenant,
          kind: "generation",
          pool: job.pool,
          model_hash: job.modelHash,
          request: job.request,
          request_id: job.requestId,
          status: "active",
          created_at: job.createdAt,
          deadline_at: job.deadlineAt,
        }),
        db.insert(executions).select(newExecutions(tenant, job)).onConflictDoNothing(),
        db.insert(executionParts).select(newExecutionParts(job)),
        db.insert(jobPictures).select(newJobPictures(tenant, job)),
        db
          .update(jobs)
          .set({ status: "succeeded", finished_at: job.createdAt })
          .where(and(eq(jobs.tenant_id, tenant), eq(jobs.id, job.id), eq(jobs.status, "active"), noPending(job.id))),
        jobRow(job.id),
        ...pictureRows([job.id]),
      ]);
      return { job: rows[0]!, pictures: withFiles(shown, files) };
    },

    /**
     * Deletes a job, and the pictures that no other job shows, with their cache entries: its own, and those that its executions made after it was
     * canceled. Resolves to the R2 keys to delete.
     */
    async deleteJob(id: string): Promise<string[]> {
      const sole = sql`(select c.id from ${jobPictures} p join ${pictures} c on c.id = p.picture_id or c.execution_id = p.execution_id
        where p.job_id = ${id} and p.tenant_id = ${tenant}
        and not exists (select 1 from ${jobPictures} other where other.picture_id = c.id and other.job_id <> p.job_id))`;
      const [, removed] = await db.batch([
        db.delete(cacheEntries).where(and(eq(cacheEntries.tenant_id, tenant), sql`${cacheEntries.picture_id} in ${sole}`)),
        db
          .delete(pictures)
          .where(and(eq(pictures.tenant_id, tenant), sql`${pictures.id} in ${sole}`))
          .returning({ key: pictures.r2_key }),
        db.delete(jobs).where(and(eq(jobs.tenant_id, tenant), eq(jobs.id, id))),
      ]);
      return removed.map(({ key }) => key);
    },
  };
}

/** The row of a picture that a verified URL names: its signature stands for the tenant's permission. */
export async function signedPicture(db: Database, id: string): Promise<PictureRow | undefined> {
  const [row] = await db.select().from(pictures).where(eq(pictures.id, id));
  return row;
}

function withFiles(rows: readonly JobPictureRow[], files: readonly PictureRow[]): JobPicture[] {
  return rows.map(row => ({ ...row, file: files.find(({ id }) => id === row.picture_id) ?? null }));
}

function columnsOf<T extends typeof pictures>(table: T) {
  const { id, tenant_id, execution_id, request_hash, model_hash, r2_key, sha256, bytes, width, height, media_type, created_at } = table;
  return { id, tenant_id, execution_id, request_hash, model_hash, r2_key, sha256, bytes, width, height, media_type, created_at };
}

function noPending(job: string): SQL {
  return sql`not exists (select 1 from ${jobPictures} p where p.job_id = ${job} and p.state = 'pending')`;
}

/** The pictures of a new job as rows of json_each: one statement inserts them all, whatever their number. */
function plannedRows(job: NewJob): SQL {
  return sql`json_each(${JSON.stringify(job.pictures)}) e`;
}

/** The cached picture of the current row of json_each. */
function cachedPicture(tenant: string): SQL {
  return sql`(select c.picture_id from ${cacheEntries} c join ${pictures} p on p.id = c.picture_id
    where c.tenant_id = ${tenant} and c.request_hash = e.value ->> 'hash')`;
}

/** Rows of `executions`, every column in the schema's order: one for each picture that has to be computed, unless it can be joined. */
function newExecutions(tenant: string, job: NewJob): SQL {
  const exclusive = job.exclusive ? 1 : 0;
  return sql`select e.value ->> 'execution', ${tenant}, ${job.pool}, e.value ->> 'hash', e.value ->> 'params', e.value ->> 'hash', ${job.modelHash},
      e.value ->> 'batchKey', e.value -> 'inputs', ${exclusive}, ${job.requestId}, 'active', null, null, ${job.createdAt}, null, 'picture'
    from ${plannedRows(job)}
    where e.value ->> 'execution' is not null and (${exclusive} or ${cachedPicture(tenant)} is null)`;
}

/** Rows of `execution_parts`, every column in the schema's order, of the executions that are new. */
function newExecutionParts(job: NewJob): SQL {
  return sql`select distinct p.value, x.id from ${plannedRows(job)}, json_each(e.value, '$.parts') p
    join ${executions} x on x.id = e.value ->> 'execution'`;
}

/** Rows of `job_pictures`, every column in the schema's order. `state` stays empty, which aborts, where nothing stands behind a picture. */
function newJobPictures(tenant: string, job: NewJob): SQL {
  const own = sql`e.value ->> 'execution'`;
  const joined = sql`case when ${own} is not null then (select x.id from ${executions} x
      where x.tenant_id = ${tenant} and x.request_hash = e.value ->> 'hash' and x.state = 'active' and x.exclusive = 0) end`;
  const [picture, execution] = job.exclusive ? [sql`null`, own] : [cachedPicture(tenant), joined];
  return sql`select ${job.id}, t.idx, ${tenant}, t.seed, t.hash, case when t.picture is null then t.execution end, t.picture,
      case when t.picture is not null then 'succeeded' when t.execution is not null then 'pending' end, t.picture is not null
    from (select e.key idx, e.value ->> 'seed' seed, e.value ->> 'hash' hash, ${picture} picture, ${execution} execution from ${plannedRows(job)}) t`;
}
