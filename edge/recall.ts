import { eq, sql } from "drizzle-orm";
import { database } from "./database.ts";
import type { Env } from "./env.ts";
import { log } from "./log.ts";
import { adapterFiles, adapters, uploads } from "./schema.ts";

const pattern = /^(?:inputs|adapters)\/(?<tenant>[^/]+)\/(?<sha256>[0-9a-f]{64})$/;

/**
 * To be called once files are deleted that no row needed a moment before. A client may have handed one of them in again in between and found it
 * in the bucket still: its upload or adapter is taken back, and asks for the file. Whoever comes later finds that it is gone.
 */
export async function recallMissing(env: Env, deleted: readonly string[]): Promise<void> {
  const files = deleted.flatMap(key => {
    const told = pattern.exec(key)?.groups;
    return told ? [{ key, ...told }] : [];
  });
  if (files.length === 0) return;
  const db = database(env);
  const ofUploads = sql`select u.id as id, k.value ->> 'key' as key from json_each(${JSON.stringify(files)}) k
    join ${uploads} u on u.tenant_id = k.value ->> 'tenant' and u.sha256 = k.value ->> 'sha256' where u.ready and k.value ->> 'key' like 'inputs/%'`;
  const ofAdapters = sql`select f.adapter_id as id, k.value ->> 'key' as key from json_each(${JSON.stringify(files)}) k
    join ${adapterFiles} f on f.tenant_id = k.value ->> 'tenant' and f.sha256 = k.value ->> 'sha256'
    join ${adapters} a on a.id = f.adapter_id where a.status = 'ready' and k.value ->> 'key' like 'adapters/%'`;
  const named = await db.all<{ id: string; key: string }>(sql`${ofUploads} union all ${ofAdapters}`);
  const objects = await Promise.all(named.map(({ key }) => env.BUCKET.head(key)));
  const lacking = named.filter((_, i) => objects[i] === null).map(({ id }) => id);
  // One id a statement: there is hardly ever one at all.
  for (const id of lacking) {
    log("warn", "a file was handed in again while it was deleted", { id });
    await db.batch([
      db.update(uploads).set({ ready: false }).where(eq(uploads.id, id)),
      db.update(adapters).set({ status: "uploading", created_at: Date.now() }).where(eq(adapters.id, id)),
    ]);
  }
}
