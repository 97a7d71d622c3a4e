import { and, desc, eq, isNull, notExists, sql } from "drizzle-orm";
import { AtelierError } from "../shared/errors.ts";
import type { ModelManifest } from "../shared/model.ts";
import { removeFiles } from "./artifacts.ts";
import { database } from "./database.ts";
import type { Env } from "./env.ts";
import { findModel } from "./models.ts";
import { apiKeys, cacheEntries, executionParts, jobPictures, models, pictures, runnerTokens, tenants } from "./schema.ts";

/** What the operator does across tenants. Clients' requests go through tenant.ts instead. */

/** Every API key, newest first, without its hash. */
export function listApiKeys(env: Env) {
  return database(env)
    .select({
      id: apiKeys.id,
      tenant: tenants.name,
      name: apiKeys.name,
      scopes: apiKeys.scopes,
      created_at: apiKeys.created_at,
      revoked_at: apiKeys.revoked_at,
    })
    .from(apiKeys)
    .innerJoin(tenants, eq(tenants.id, apiKeys.tenant_id))
    .orderBy(desc(apiKeys.id));
}

/** Revokes a key from this moment on; one that is revoked already stays so. @throws AtelierError not_found */
export async function revokeApiKey(env: Env, id: string): Promise<void> {
  const db = database(env);
  const [, [known]] = await db.batch([
    db
      .update(apiKeys)
      .set({ revoked_at: Date.now() })
      .where(and(eq(apiKeys.id, id), isNull(apiKeys.revoked_at))),
    db.select({ id: apiKeys.id }).from(apiKeys).where(eq(apiKeys.id, id)),
  ]);
  if (!known) throw new AtelierError("not_found", `There is no key ${id}.`);
}

/** Every runner token, newest first, without its hash. */
export function listRunnerTokens(env: Env) {
  const { id, name, pool, created_at, revoked_at } = runnerTokens;
  return database(env).select({ id, name, pool, created_at, revoked_at }).from(runnerTokens).orderBy(desc(id));
}

/** Revokes a runner's token: its sockets are closed and its leases end. @throws AtelierError not_found */
export async function revokeRunnerToken(env: Env, id: string): Promise<void> {
  const db = database(env);
  const [, [known]] = await db.batch([
    db
      .update(runnerTokens)
      .set({ revoked_at: Date.now() })
      .where(and(eq(runnerTokens.id, id), isNull(runnerTokens.revoked_at))),
    db.select({ pool: runnerTokens.pool }).from(runnerTokens).where(eq(runnerTokens.id, id)),
  ]);
  if (!known) throw new AtelierError("not_found", `There is no runner token ${id}.`);
  await env.DISPATCHER.getByName(known.pool).revoke({ v: 1, token: id });
}

/** Registers a model under its name, or moves the name to other content. What was cached of content that no name stands for any more goes. */
export async function putModel(env: Env, manifest: ModelManifest): Promise<void> {
  const db = database(env);
  const before = await findModel(db, manifest.name);
  const columns = { hash: manifest.hash, pool: manifest.pool, manifest };
  await db
    .insert(models)
    .values({ name: manifest.name, ...columns, created_at: Date.now() })
    .onConflictDoUpdate({ target: models.name, set: columns });
  if (before && before.hash !== manifest.hash) await purgeModel(env, before.hash);
}

/** Takes a model out of service and its pictures out of the cache. @throws AtelierError not_found */
export async function deleteModel(env: Env, name: string): Promise<void> {
  const [removed] = await database(env).delete(models).where(eq(models.name, name)).returning({ hash: models.hash });
  if (!removed) throw new AtelierError("not_found", `There is no model ${name}.`);
  await purgeModel(env, removed.hash);
}

/**
 * Empties the cache of a model that no name stands for, also where it was the refiner. Pictures that a generation shows stay with it, since they are their tenant's;
 * the others are deleted.
 */
async function purgeModel(env: Env, hash: string): Promise<void> {
  const db = database(env);
  const unnamed = notExists(db.select({ one: sql`1` }).from(models).where(eq(models.hash, hash)));
  const withModel = sql`(${pictures.model_hash} = ${hash} or ${pictures.execution_id} in (select x.execution_id from ${executionParts} x where x.hash = ${hash}))`;
  const ofModel = sql`(select ${pictures.id} from ${pictures} where ${withModel})`;
  const shown = db.select({ one: sql`1` }).from(jobPictures).where(eq(jobPictures.picture_id, pictures.id));
  const [, removed] = await db.batch([
    db.delete(cacheEntries).where(and(sql`${cacheEntries.picture_id} in ${ofModel}`, unnamed)),
    db
      .delete(pictures)
      .where(and(withModel, unnamed, notExists(shown)))
      .returning({ key: pictures.r2_key }),
  ]);
  await removeFiles(
    env,
    removed.map(({ key }) => key),
  );
}
