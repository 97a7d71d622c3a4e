import { and, type Column, desc, eq, lt, ne, or, type SQL, sql } from "drizzle-orm";
import type { Database } from "./database.ts";
import { adapterFiles, adapters, cacheEntries, executionParts, jobPictures, pictures, uploads } from "./schema.ts";

/** A tenant's part of D1 that is about the files it hands in: uploads and adapters. */

export type UploadRow = typeof uploads.$inferSelect;
export type AdapterFileRow = typeof adapterFiles.$inferSelect;
export type AdapterRow = typeof adapters.$inferSelect;

/** An adapter and its files, by path. */
export interface StoredAdapter {
  readonly adapter: AdapterRow;
  readonly files: readonly AdapterFileRow[];
}

/** Whether a column has one of these values, whatever their number: D1 binds at most 100 parameters to a statement. */
export function among(column: Column, values: readonly string[]): SQL {
  return sql`${column} in (select value from json_each(${JSON.stringify(values)}))`;
}

/** Everything that a client's request may read or write of uploads and adapters, seen through one tenant. */
export function tenantFiles(db: Database, tenant: string) {
  return { ...tenantUploads(db, tenant), ...adapterReads(db, tenant), ...adapterWrites(db, tenant) };
}

function tenantUploads(db: Database, tenant: string) {
  return {
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
        .where(and(eq(uploads.tenant_id, tenant), among(uploads.id, ids), eq(uploads.ready, true)))
        .returning();
    },

    /**
     * The upload of this content: a new one, or the one that there is, which is kept as long as a new one would be. What was said of the file
     * before it came counts no more than what is said now.
     */
    async openUpload(upload: Pick<UploadRow, "id" | "sha256" | "bytes" | "media_type" | "created_at" | "expires_at">): Promise<UploadRow> {
      const unlessReady = (column: Column) => sql`case when ${uploads.ready} then ${column} else ${sql.raw(`excluded.${column.name}`)} end`;
      const [row] = await db
        .insert(uploads)
        .values({ ...upload, tenant_id: tenant, ready: false })
        .onConflictDoUpdate({
          target: [uploads.tenant_id, uploads.sha256],
          set: {
            bytes: unlessReady(uploads.bytes),
            media_type: unlessReady(uploads.media_type),
            expires_at: sql`max(${uploads.expires_at}, excluded.expires_at)`,
          },
        })
        .returning();
      return row!;
    },

    /** The upload's object is gone: it has to be sent again. */
    async reopenUpload(id: string): Promise<UploadRow | undefined> {
      const own = and(eq(uploads.tenant_id, tenant), eq(uploads.id, id));
      const [row] = await db.update(uploads).set({ ready: false }).where(own).returning();
      return row;
    },
  };
}

/** Ids and content hashes cannot be adapters' names, nor names either of them (shared/names.ts). */
function kindOfReference(reference: string): "id" | "hash" | "name" {
  if (reference.startsWith("adp_")) return "id";
  return reference.startsWith("sha256:") ? "hash" : "name";
}

async function withFiles(db: Database, found: readonly AdapterRow[]): Promise<StoredAdapter[]> {
  if (found.length === 0) return [];
  const ids = found.map(({ id }) => id);
  const files = await db.select().from(adapterFiles).where(among(adapterFiles.adapter_id, ids)).orderBy(adapterFiles.path);
  return found.map(adapter => ({ adapter, files: files.filter(({ adapter_id }) => adapter_id === adapter.id) }));
}

function adapterReads(db: Database, tenant: string) {
  const visible = or(eq(adapters.tenant_id, tenant), and(eq(adapters.visibility, "public"), eq(adapters.status, "ready")));
  const isPublic = sql`a.visibility = 'public' and a.status = 'ready'`;
  // Of a public name that several tenants have, the one's that published it first: a later one takes it from nobody.
  const publisher = sql`(select a.tenant_id from ${adapters} a where a.name = r.value and ${isPublic} order by a.id limit 1)`;
  /** The adapter's id that the reference `r.value` stands for. */
  const chosen = {
    id: sql`r.value`,
    hash: sql`coalesce((select a.id from ${adapters} a where a.hash = r.value and a.tenant_id = ${tenant} order by a.status = 'ready' desc, a.id limit 1),
      (select a.id from ${adapters} a where a.hash = r.value and ${isPublic} order by a.id limit 1))`,
    name: sql`coalesce((select a.id from ${adapters} a where a.tenant_id = ${tenant} and a.name = r.value and a.status = 'ready' order by a.version desc limit 1),
      (select a.id from ${adapters} a where a.name = r.value and ${isPublic} and a.tenant_id = ${publisher} order by a.version desc limit 1),
      (select a.id from ${adapters} a where a.tenant_id = ${tenant} and a.name = r.value order by a.version desc limit 1))`,
  } as const;

  return {
    async adapter(id: string): Promise<StoredAdapter | undefined> {
      return (
        await withFiles(
          db,
          await db
            .select()
            .from(adapters)
            .where(and(visible, eq(adapters.id, id))),
        )
      )[0];
    },

    /**
     * The adapters that the tenant may see under these references: its own in every state, and ready public ones. A name stands for its latest
     * version that is ready, the tenant's own before a public one; where none is ready, for the tenant's latest.
     */
    async adapters(references: readonly string[]): Promise<ReadonlyMap<string, StoredAdapter>> {
      const byKind = Map.groupBy(references, kindOfReference);
      const rows = await Promise.all(
        Array.from(byKind, ([kind, some]) =>
          db
            .select({ reference: sql<string>`r.value`, adapter: adapters })
            .from(adapters)
            .innerJoin(sql`json_each(${JSON.stringify(some)}) r`, sql`${adapters.id} = ${chosen[kind]}`)
            .where(visible),
        ),
      );
      const found = rows.flat();
      const distinct = [...new Map(found.map(({ adapter }) => [adapter.id, adapter])).values()];
      const stored = new Map((await withFiles(db, distinct)).map(entry => [entry.adapter.id, entry]));
      return new Map(found.map(({ reference, adapter }) => [reference, stored.get(adapter.id)!]));
    },

    /** Adapters that the tenant may see, newest first, older than the one named. */
    async listAdapters(limit: number, before?: string): Promise<StoredAdapter[]> {
      const older = before === undefined ? undefined : lt(adapters.id, before);
      return withFiles(db, await db.select().from(adapters).where(and(visible, older)).orderBy(desc(adapters.id)).limit(limit));
    },
  };
}

function adapterWrites(db: Database, tenant: string) {
  const own = (id: string) => and(eq(adapters.tenant_id, tenant), eq(adapters.id, id));
  const read = async (where: SQL | undefined) => (await withFiles(db, await db.select().from(adapters).where(where)))[0];

  return {
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
          .where(and(same, eq(adapters.status, "ready"))),
        db
          .update(adapters)
          .set({ status: "uploading", reasons: null, stated_kind, token, visibility, created_at })
          .where(and(same, ne(adapters.status, "ready"))),
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
      return read(same);
    },

    /** Says what an adapter that was being uploaded turned out to be. One that is settled stays as it is. */
    async settleAdapter(id: string, outcome: Pick<AdapterRow, "status" | "manifest" | "reasons">): Promise<StoredAdapter | undefined> {
      await db
        .update(adapters)
        .set(outcome)
        .where(and(own(id), eq(adapters.status, "uploading")));
      return read(own(id));
    },

    /** Files of a ready adapter are gone: they have to be sent again. */
    async reopenAdapter(id: string, now: number): Promise<StoredAdapter | undefined> {
      await db
        .update(adapters)
        .set({ status: "uploading", created_at: now })
        .where(and(own(id), eq(adapters.status, "ready")));
      return read(own(id));
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
      const [row] = await db.select().from(adapters).where(own(id));
      if (!row) return undefined;
      const gone = sql`${pictures.execution_id} in (select x.execution_id from ${executionParts} x where x.hash = ${row.hash})
        and not exists (select 1 from ${adapters} a where a.hash = ${row.hash} and a.status = 'ready'
          and (a.tenant_id = ${pictures.tenant_id} or a.visibility = 'public'))`;
      const shown = sql`exists (select 1 from ${jobPictures} j where j.picture_id = ${pictures.id})`;
      const files = await db.select().from(adapterFiles).where(eq(adapterFiles.adapter_id, id));
      const hashes = files.map(({ sha256 }) => sha256);
      const [, , , removed, kept] = await db.batch([
        db.delete(adapterFiles).where(eq(adapterFiles.adapter_id, id)),
        db.delete(adapters).where(own(id)),
        db.delete(cacheEntries).where(sql`${cacheEntries.picture_id} in (select ${pictures.id} from ${pictures} where ${gone})`),
        db.delete(pictures).where(sql`${gone} and not ${shown}`).returning({ key: pictures.r2_key }),
        db
          .select({ sha256: adapterFiles.sha256 })
          .from(adapterFiles)
          .where(and(eq(adapterFiles.tenant_id, tenant), among(adapterFiles.sha256, hashes))),
      ]);
      const unused = hashes.filter(sha256 => !kept.some(file => file.sha256 === sha256));
      return [...removed.map(({ key }) => key), ...unused.map(sha256 => adapterKey(tenant, sha256))];
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
