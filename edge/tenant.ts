import { and, desc, eq, inArray, lt, ne, or, type SQL, sql } from "drizzle-orm";
import type { ResolvedRequest } from "../shared/generation.ts";
import type { Database } from "./database.ts";
import type { PlannedPicture } from "./generation.ts";
import { adapterFiles, adapters, cacheEntries, executionParts, executions, jobPictures, jobs, pictures, uploads } from "./schema.ts";

export type JobRow = typeof jobs.$inferSelect;
export type PictureRow = typeof pictures.$inferSelect;
export type UploadRow = typeof uploads.$inferSelect;
export type AdapterFileRow = typeof adapterFiles.$inferSelect;
export type AdapterRow = typeof adapters.$inferSelect;
export type JobPictureRow = typeof jobPictures.$inferSelect;
/** A picture of a job, and the file behind it once there is one. */
export interface JobPicture extends JobPictureRow {
  readonly file: PictureRow | null;
}

/** An adapter and its files, by path. */
export interface StoredAdapter {
  readonly adapter: AdapterRow;
  readonly files: readonly AdapterFileRow[];
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
 * Everything that a client's request may read or write in D1, seen through one tenant. This is the one place where such queries are built:
 * each carries the tenant, and another tenant's row is as absent as one that never was.
 */
export function tenantStore(db: Database, tenant: string) {
  // Two statements instead of a join: D1 gives a batch's rows as objects, in which columns of the same name would fall into one.
  const ofJobs = (ids: readonly string[]) => and(eq(jobPictures.tenant_id, tenant), inArray(jobPictures.job_id, [...ids]));
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

  const visible = or(eq(adapters.tenant_id, tenant), and(eq(adapters.visibility, "public"), eq(adapters.status, "ready")));
  const withAdapterFiles = async (found: readonly AdapterRow[]): Promise<StoredAdapter[]> => {
    if (found.length === 0) return [];
    const ids = inArray(
      adapterFiles.adapter_id,
      found.map(({ id }) => id),
    );
    const files = await db.select().from(adapterFiles).where(ids).orderBy(adapterFiles.path);
    return found.map(adapter => ({ adapter, files: files.filter(({ adapter_id }) => adapter_id === adapter.id) }));
  };

  return {
    tenant,

    /** A job and its pictures by index. */
    async job(id: string): Promise<{ job: JobRow; pictures: JobPicture[] } | undefined> {
      const [[job], rows, files] = await db.batch([jobRow(id), ...pictureRows([id])]);
      return job && { job, pictures: withFiles(rows, files) };
    },

    /** Jobs, newest first, older than the one named. */
    async jobs(limit: number, before?: string): Promise<{ job: JobRow; pictures: JobPicture[] }[]> {
      const page = await db
        .select()
        .from(jobs)
        .where(and(eq(jobs.tenant_id, tenant), before === undefined ? undefined : lt(jobs.id, before)))
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
        .where(and(eq(pictures.tenant_id, tenant), inArray(pictures.id, [...ids])));
    },

    async upload(id: string): Promise<UploadRow | undefined> {
      const [row] = await db
        .select()
        .from(uploads)
        .where(and(eq(uploads.tenant_id, tenant), eq(uploads.id, id)));
      return row;
    },

    /** Those of these uploads that are ready, which are kept from now on until `expiresAt` at least. */
    useUploads(ids: readonly string[], expiresAt: number): Promise<UploadRow[]> {
      return db
        .update(uploads)
        .set({ expires_at: sql`max(${uploads.expires_at}, ${expiresAt})` })
        .where(and(eq(uploads.tenant_id, tenant), inArray(uploads.id, [...ids]), eq(uploads.ready, true)))
        .returning();
    },

    /** The upload of this content: a new one, or the one that there is, which is kept as long as a new one would be. */
    async openUpload(upload: Pick<UploadRow, "id" | "sha256" | "bytes" | "media_type" | "created_at" | "expires_at">): Promise<UploadRow> {
      const [row] = await db
        .insert(uploads)
        .values({ ...upload, tenant_id: tenant, ready: false })
        .onConflictDoUpdate({
          target: [uploads.tenant_id, uploads.sha256],
          set: { expires_at: sql`max(${uploads.expires_at}, excluded.expires_at)` },
        })
        .returning();
      return row!;
    },

    /** Adapters that the tenant may see: its own in every state, and ready public ones. A name stands for every version of it. */
    async adapters(references: readonly string[]): Promise<StoredAdapter[]> {
      const named = or(...[adapters.id, adapters.hash, adapters.name].map(column => inArray(column, [...references])));
      return withAdapterFiles(await db.select().from(adapters).where(and(visible, named)).orderBy(desc(adapters.version)));
    },

    /** Adapters that the tenant may see, newest first, older than the one named. */
    async listAdapters(limit: number, before?: string): Promise<StoredAdapter[]> {
      const older = before === undefined ? undefined : lt(adapters.id, before);
      return withAdapterFiles(await db.select().from(adapters).where(and(visible, older)).orderBy(desc(adapters.id)).limit(limit));
    },

    /**
     * The adapter of this name and content: a new version, or the one that there is, with visibility and token as they are stated now. One that was
     * refused is uploaded anew, since its files are gone. The tenant's adapters are counted in the same statement. Resolves to undefined where there are `most` of them already.
     */
    async openAdapter(
      adapter: Pick<AdapterRow, "id" | "name" | "hash" | "visibility" | "stated_kind" | "token" | "created_at">,
      files: readonly Pick<AdapterFileRow, "path" | "sha256" | "bytes">[],
      most: number,
    ): Promise<StoredAdapter | undefined> {
      const { id, name, hash, visibility, stated_kind, token, created_at } = adapter;
      const same = and(eq(adapters.tenant_id, tenant), eq(adapters.name, name), eq(adapters.hash, hash));
      const version = sql`(select coalesce(max(a.version), 0) + 1 from ${adapters} a where a.tenant_id = ${tenant} and a.name = ${name})`;
      const room = sql`(select count(*) from ${adapters} a where a.tenant_id = ${tenant}) < ${most}`;
      await db.batch([
        db
          .update(adapters)
          .set({ visibility, token: sql`coalesce(${token}, ${adapters.token})` })
          .where(and(same, ne(adapters.status, "refused"))),
        db
          .update(adapters)
          .set({ status: "uploading", reasons: null, stated_kind, token, visibility, created_at })
          .where(and(same, eq(adapters.status, "refused"))),
        db
          .insert(adapters)
          .select(
            sql`select ${id}, ${tenant}, ${name}, ${version}, ${hash}, ${visibility}, 'uploading', ${stated_kind}, ${token}, null, null, ${created_at} where ${room}`,
          )
          .onConflictDoNothing(),
        db.insert(adapterFiles).select(
          sql`select ${id}, e.value ->> 'path', ${tenant}, e.value ->> 'sha256', e.value ->> 'bytes' from json_each(${JSON.stringify(files)}) e
              where exists (select 1 from ${adapters} where id = ${id})`,
        ),
      ]);
      return (await withAdapterFiles(await db.select().from(adapters).where(same)))[0];
    },

    /** Says what an adapter that was being uploaded turned out to be. One that is settled stays as it is. */
    async settleAdapter(id: string, outcome: Pick<AdapterRow, "status" | "manifest" | "reasons">): Promise<StoredAdapter | undefined> {
      const own = and(eq(adapters.tenant_id, tenant), eq(adapters.id, id));
      await db
        .update(adapters)
        .set(outcome)
        .where(and(own, eq(adapters.status, "uploading")));
      return (await withAdapterFiles(await db.select().from(adapters).where(own)))[0];
    },

    /** R2 keys of the files of a refused adapter that no other adapter of the tenant has. */
    async unusedAdapterFiles(id: string): Promise<string[]> {
      const rows = await db
        .select({ sha256: adapterFiles.sha256 })
        .from(adapterFiles)
        .where(
          and(
            eq(adapterFiles.tenant_id, tenant),
            eq(adapterFiles.adapter_id, id),
            sql`not exists (select 1 from ${adapterFiles} other join ${adapters} a on a.id = other.adapter_id
              where other.tenant_id = ${tenant} and other.sha256 = ${adapterFiles.sha256} and a.status <> 'refused')`,
          ),
        );
      return rows.map(({ sha256 }) => adapterKey(tenant, sha256));
    },

    /**
     * Deletes an adapter, and takes what was made with its content out of the cache of every tenant that no other adapter gives this content to.
     * Pictures that a generation shows stay with it; the others are deleted. Resolves to the R2 keys to delete; undefined where there is none.
     */
    async deleteAdapter(id: string): Promise<string[] | undefined> {
      const own = and(eq(adapters.tenant_id, tenant), eq(adapters.id, id));
      const [row] = await db.select().from(adapters).where(own);
      if (!row) return undefined;
      const gone = sql`exists (select 1 from ${executionParts} x where x.execution_id = ${pictures.execution_id} and x.hash = ${row.hash})
        and not exists (select 1 from ${adapters} a where a.hash = ${row.hash} and a.status = 'ready'
          and (a.tenant_id = ${pictures.tenant_id} or a.visibility = 'public'))`;
      const shown = sql`exists (select 1 from ${jobPictures} j where j.picture_id = ${pictures.id})`;
      const files = await db.select().from(adapterFiles).where(eq(adapterFiles.adapter_id, id));
      const [, , , removed, kept] = await db.batch([
        db.delete(adapterFiles).where(eq(adapterFiles.adapter_id, id)),
        db.delete(adapters).where(own),
        db.delete(cacheEntries).where(sql`${cacheEntries.picture_id} in (select ${pictures.id} from ${pictures} where ${gone})`),
        db.delete(pictures).where(sql`${gone} and not ${shown}`).returning({ key: pictures.r2_key }),
        db
          .select({ sha256: adapterFiles.sha256 })
          .from(adapterFiles)
          .where(
            and(
              eq(adapterFiles.tenant_id, tenant),
              inArray(
                adapterFiles.sha256,
                files.map(({ sha256 }) => sha256),
              ),
            ),
          ),
      ]);
      const unused = files.filter(({ sha256 }) => !kept.some(file => file.sha256 === sha256));
      return [...removed.map(({ key }) => key), ...unused.map(({ sha256 }) => adapterKey(tenant, sha256))];
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

/** Object key of a file of a tenant's adapter. */
export function adapterKey(tenant: string, sha256: string): string {
  return `adapters/${tenant}/${sha256}`;
}

/** Object key of a tenant's input file. */
export function inputKey(tenant: string, sha256: string): string {
  return `inputs/${tenant}/${sha256}`;
}

/** The upload that a verified URL names: its signature stands for the tenant's permission. */
export async function signedUpload(db: Database, id: string): Promise<UploadRow | undefined> {
  const [row] = await db.select().from(uploads).where(eq(uploads.id, id));
  return row;
}

/** Says that an upload's object lies where it belongs. */
export async function finishUpload(
  db: Database,
  id: string,
  { width, height }: { width: number | null; height: number | null },
): Promise<UploadRow | undefined> {
  const [row] = await db.update(uploads).set({ ready: true, width, height }).where(eq(uploads.id, id)).returning();
  return row;
}

/** The file of an adapter that a verified URL names. */
export async function signedAdapterFile(db: Database, id: string, sha256: string): Promise<AdapterFileRow | undefined> {
  const [row] = await db
    .select()
    .from(adapterFiles)
    .where(and(eq(adapterFiles.adapter_id, id), eq(adapterFiles.sha256, sha256)));
  return row;
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
      e.value ->> 'batchKey', e.value -> 'inputs', ${exclusive}, ${job.requestId}, 'active', null, null, ${job.createdAt}, null
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
