import { and, eq, inArray, lt, ne, type SQL, sql } from "drizzle-orm";
import { database } from "./database.ts";
import { type Env, settings } from "./env.ts";
import { errorFields, log } from "./log.ts";
import { recallMissing } from "./recall.ts";
import {
  adapterFiles,
  adapters,
  datasetFiles,
  deadLetters,
  executions,
  idempotencyKeys,
  pictures,
  securityEvents,
  sweepCursors,
  trainings,
  uploads,
} from "./schema.ts";

/** Objects of one kind that one run looks at. */
const LIST_LIMIT = 500;
const DAY_MS = 24 * 3_600_000;
/** How long rows are kept that only tell what happened, or wait for what doesn't come. */
const keptMs = {
  idempotency: DAY_MS,
  securityEvents: 90 * DAY_MS,
  deadLetters: 90 * DAY_MS,
  unfinishedAdapters: 2 * DAY_MS,
  checkpoints: DAY_MS,
} as const;
/** Most security events that are kept, since strangers can cause them. */
const MAX_SECURITY_EVENTS = 10_000;

/**
 * Where files lie, what their keys tell, and the condition under which a row still needs one; `k` is a row of json_each with what the key told.
 * A key of another form is nobody's orphan: it is left alone. Keys: shared/protocol.ts (staging), edge/settle.ts (pictures), edge/tenant-files.ts.
 *
 * While an execution isn't terminal in D1, its commit may be under way, which writes the file before the row; once it is terminal, no row comes
 * that is not there already, and no staged file is read again.
 */
const ofExecution = sql`exists (select 1 from ${executions} x where x.id = k.value ->> 'execution' and x.state in ('active', 'abandoned'))`;
const kinds = [
  { prefix: "staging/", pattern: /^staging\/(?<execution>exe_[0-9A-Z]{26})\/\d+\/.+$/, needed: ofExecution },
  {
    prefix: "pictures/",
    pattern: /^pictures\/ten_[0-9A-Z]{26}\/(?<execution>exe_[0-9A-Z]{26})\.[a-z]+$/,
    needed: sql`${ofExecution}
      or exists (select 1 from ${pictures} p where p.execution_id = k.value ->> 'execution' and p.r2_key = k.value ->> 'key')`,
  },
  {
    prefix: "inputs/",
    pattern: /^inputs\/(?<tenant>ten_[0-9A-Z]{26})\/(?<sha256>[0-9a-f]{64})$/,
    needed: sql`exists (select 1 from ${uploads} u where u.tenant_id = k.value ->> 'tenant' and u.sha256 = k.value ->> 'sha256')`,
  },
  {
    prefix: "adapters/",
    pattern: /^adapters\/(?<tenant>ten_[0-9A-Z]{26})\/(?<sha256>[0-9a-f]{64})$/,
    needed: sql`exists (select 1 from ${adapterFiles} f where f.tenant_id = k.value ->> 'tenant' and f.sha256 = k.value ->> 'sha256')`,
  },
  {
    prefix: "trainings/",
    pattern: /^trainings\/ten_[0-9A-Z]{26}\/(?<training>trn_[0-9A-Z]{26})\/.+$/,
    needed: sql`exists (select 1 from ${trainings} t where t.id = k.value ->> 'training')`,
  },
  {
    prefix: "datasets/",
    pattern: /^datasets\/(?<tenant>ten_[0-9A-Z]{26})\/(?<sha256>[0-9a-f]{64})$/,
    // A training goes on when its dataset is deleted.
    needed: sql`exists (select 1 from ${datasetFiles} f where f.tenant_id = k.value ->> 'tenant' and f.sha256 = k.value ->> 'sha256')
      or exists (select 1 from ${executions} x, json_each(x.inputs, '$.files') i
        where x.tenant_id = k.value ->> 'tenant' and x.kind = 'training' and x.state = 'active' and i.value ->> 'key' = k.value ->> 'key')`,
  },
  {
    prefix: "checkpoints/",
    pattern: /^checkpoints\/(?<execution>exe_[0-9A-Z]{26})\/\d+$/,
    needed: sql`exists (select 1 from ${executions} x where x.id = k.value ->> 'execution'
      and (x.state in ('active', 'abandoned') or x.finished_at > unixepoch() * 1000 - ${keptMs.checkpoints}))`,
  },
] as const;

/** One run of the search for orphans, and of deleting rows that are past their time. Bounded; the next run goes on where this one stopped. */
export async function sweepOrphans(env: Env, now: number, limit = LIST_LIMIT): Promise<{ listed: number; deleted: number }> {
  let listed = 0;
  let deleted = 0;
  // Before the objects, so that those of rows that go now can go soon.
  await pruneRows(env, now).catch((error: unknown) => log("warn", "old rows not deleted", errorFields(error)));
  for (const kind of kinds) {
    try {
      const swept = await sweepKind(env, kind, now, limit);
      listed += swept.listed;
      deleted += swept.deleted;
    } catch (error) {
      log("warn", "orphans not swept; the next run tries again", { prefix: kind.prefix, ...errorFields(error) });
    }
  }
  if (deleted > 0) log("info", "orphaned objects deleted", { listed, deleted });
  return { listed, deleted };
}

async function sweepKind(
  env: Env,
  { prefix, pattern, needed }: (typeof kinds)[number],
  now: number,
  limit: number,
): Promise<{ listed: number; deleted: number }> {
  const db = database(env);
  const [cursor] = await db.select().from(sweepCursors).where(eq(sweepCursors.prefix, prefix));
  const page = await env.BUCKET.list({ prefix, limit, ...(cursor?.after && { startAfter: cursor.after }) });
  const oldest = now - settings(env).ORPHAN_GRACE_MS;
  const candidates = page.objects.flatMap(({ key, uploaded }) => {
    const told = pattern.exec(key)?.groups;
    return told && uploaded.getTime() < oldest ? [{ key, ...told }] : [];
  });
  const orphans = await unneeded(env, candidates, needed);
  if (orphans.length > 0) {
    await env.BUCKET.delete(orphans);
    await recallMissing(env, orphans);
  }
  const after = page.truncated ? page.objects.at(-1)!.key : "";
  await db.insert(sweepCursors).values({ prefix, after }).onConflictDoUpdate({ target: sweepCursors.prefix, set: { after } });
  return { listed: page.objects.length, deleted: orphans.length };
}

async function unneeded(env: Env, candidates: readonly { key: string }[], needed: SQL): Promise<string[]> {
  if (candidates.length === 0) return [];
  const rows = await database(env).all<{ key: string }>(
    sql`select k.value ->> 'key' as key from json_each(${JSON.stringify(candidates)}) k where not (${needed})`,
  );
  return rows.map(({ key }) => key);
}

async function pruneRows(env: Env, now: number): Promise<void> {
  const db = database(env);
  const neverReady = and(ne(adapters.status, "ready"), lt(adapters.created_at, now - keptMs.unfinishedAdapters));
  await db.batch([
    db.delete(idempotencyKeys).where(lt(idempotencyKeys.created_at, now - keptMs.idempotency)),
    db.delete(uploads).where(lt(uploads.expires_at, now)),
    // Refused ones are kept for their reasons, unfinished ones for files that may still come.
    db.delete(adapterFiles).where(inArray(adapterFiles.adapter_id, db.select({ id: adapters.id }).from(adapters).where(neverReady))),
    db.delete(adapters).where(neverReady),
    db.delete(deadLetters).where(lt(deadLetters.created_at, now - keptMs.deadLetters)),
    db.delete(securityEvents).where(lt(securityEvents.created_at, now - keptMs.securityEvents)),
    db
      .delete(securityEvents)
      .where(sql`${securityEvents.id} <= (select id from ${securityEvents} order by id desc limit 1 offset ${MAX_SECURITY_EVENTS})`),
  ]);
}
