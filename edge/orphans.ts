import { eq, lt, sql } from "drizzle-orm";
import { database } from "./database.ts";
import { type Env, settings } from "./env.ts";
import { errorFields, log } from "./log.ts";
import { deadLetters, executions, idempotencyKeys, pictures, securityEvents, sweepCursors } from "./schema.ts";

/** Objects of one kind that one run looks at. */
const LIST_LIMIT = 500;
const DAY_MS = 24 * 3_600_000;
/** How long rows are kept that only tell what happened. */
const keptMs = { idempotency: DAY_MS, securityEvents: 90 * DAY_MS, deadLetters: 90 * DAY_MS } as const;
/** Most security events that are kept, since strangers can cause them. */
const MAX_SECURITY_EVENTS = 10_000;

/**
 * Where files lie, and the execution that a key belongs to. A key of another form is nobody's orphan: it is left alone.
 * Keys: shared/protocol.ts (staging), edge/settle.ts (pictures).
 */
const kinds = [
  { prefix: "staging/", executionOf: /^staging\/(exe_[0-9A-Z]{26})\/\d+\/result$/ },
  { prefix: "pictures/", executionOf: /^pictures\/ten_[0-9A-Z]{26}\/(exe_[0-9A-Z]{26})\.[a-z]+$/ },
] as const;

/** One run of the search for orphans, and of deleting rows that are past their time. Bounded; the next run goes on where this one stopped. */
export async function sweepOrphans(env: Env, now: number, limit = LIST_LIMIT): Promise<{ listed: number; deleted: number }> {
  let listed = 0;
  let deleted = 0;
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
  await pruneRows(env, now).catch((error: unknown) => log("warn", "old rows not deleted", errorFields(error)));
  return { listed, deleted };
}

async function sweepKind(
  env: Env,
  { prefix, executionOf }: (typeof kinds)[number],
  now: number,
  limit: number,
): Promise<{ listed: number; deleted: number }> {
  const db = database(env);
  const [cursor] = await db.select().from(sweepCursors).where(eq(sweepCursors.prefix, prefix));
  const page = await env.BUCKET.list({ prefix, limit, ...(cursor?.after && { startAfter: cursor.after }) });
  const oldest = now - settings(env).ORPHAN_GRACE_MS;
  const candidates = page.objects.flatMap(({ key, uploaded }) => {
    const [, execution] = executionOf.exec(key) ?? [];
    return execution !== undefined && uploaded.getTime() < oldest ? [{ key, execution }] : [];
  });
  const orphans = await withoutRow(env, candidates);
  if (orphans.length > 0) await env.BUCKET.delete(orphans);
  const after = page.truncated ? page.objects.at(-1)!.key : "";
  await db.insert(sweepCursors).values({ prefix, after }).onConflictDoUpdate({ target: sweepCursors.prefix, set: { after } });
  return { listed: page.objects.length, deleted: orphans.length };
}

/**
 * The keys that nothing refers to or will refer to. While an execution isn't terminal in D1, its commit may be under way, which writes the file
 * before the row; once it is terminal, no row comes that is not there already, and no staged file is read again.
 */
async function withoutRow(env: Env, candidates: readonly { key: string; execution: string }[]): Promise<string[]> {
  if (candidates.length === 0) return [];
  const rows = await database(env).all<{ key: string }>(sql`
    select e.value ->> 'key' as key from json_each(${JSON.stringify(candidates)}) e
    where not exists (select 1 from ${executions} x where x.id = e.value ->> 'execution' and x.state in ('active', 'abandoned'))
      and not exists (select 1 from ${pictures} p where p.execution_id = e.value ->> 'execution' and p.r2_key = e.value ->> 'key')`);
  return rows.map(({ key }) => key);
}

async function pruneRows(env: Env, now: number): Promise<void> {
  const db = database(env);
  await db.batch([
    db.delete(idempotencyKeys).where(lt(idempotencyKeys.created_at, now - keptMs.idempotency)),
    db.delete(deadLetters).where(lt(deadLetters.created_at, now - keptMs.deadLetters)),
    db.delete(securityEvents).where(lt(securityEvents.created_at, now - keptMs.securityEvents)),
    db
      .delete(securityEvents)
      .where(sql`${securityEvents.id} <= (select id from ${securityEvents} order by id desc limit 1 offset ${MAX_SECURITY_EVENTS})`),
  ]);
}
