import { and, eq, inArray, isNull } from "drizzle-orm";
import type { MiddlewareHandler } from "hono";
import { AtelierError } from "../shared/errors.ts";
import { database } from "./database.ts";
import { type Env, settings } from "./env.ts";
import type { AppContext, AppEnv } from "./http.ts";
import { newId } from "./ids.ts";
import { apiKeys, runnerTokens, tenants } from "./schema.ts";
import { checksumBase62, equalSecrets, newPepperedHash, pepperedHash, randomBase62 } from "./secrets.ts";

/** What a key may do: `read` covers GET and HEAD, `write` every other method, `publish` making adapters public besides. */
export const scopes = ["read", "write", "publish"] as const;
export type Scope = (typeof scopes)[number];

/** Who a request comes from. */
export interface Principal {
  readonly tenant: string;
  readonly key: string;
  readonly scopes: readonly string[];
}

const KEY_DIGITS = 30;
const keyPattern = new RegExp(`^(atl_([a-z0-9]{2,12})_[0-9A-Za-z]{${KEY_DIGITS}})([0-9A-Za-z]{6})$`);
const runnerTokenPattern = /^(rnr_[0-9A-HJKMNP-TV-Z]{26})\.([0-9A-Za-z]{30,64})$/;

/** Whether a text has the form of a key of this environment, checksum included. */
export function isWellFormedKey(key: string, environment: string): boolean {
  const [, body, inEnvironment, checksum] = keyPattern.exec(key) ?? [];
  return body !== undefined && inEnvironment === environment && checksum === checksumBase62(body);
}

/** Creates a key for the tenant of this name, and the tenant where there is none. The key itself is returned once and never stored. */
export async function createApiKey(env: Env, { tenant, name, scopes }: { tenant: string; name: string; scopes: readonly Scope[] }) {
  const { ENVIRONMENT, PEPPERS } = settings(env);
  const body = `atl_${ENVIRONMENT}_${randomBase62(KEY_DIGITS)}`;
  const key = body + checksumBase62(body);
  const db = database(env);
  const now = Date.now();
  await db
    .insert(tenants)
    .values({ id: newId("tenant"), name: tenant, created_at: now })
    .onConflictDoNothing();
  const [owner] = await db.select().from(tenants).where(eq(tenants.name, tenant));
  const row = {
    id: newId("key"),
    tenant_id: owner!.id,
    name,
    scopes: [...scopes],
    created_at: now,
    ...(await newPepperedHash(PEPPERS, key)),
  };
  await db.insert(apiKeys).values(row);
  return { id: row.id, tenant_id: row.tenant_id, key };
}

/** The principal of a key. Revocation holds at once: every request asks D1. @throws AtelierError unauthorized */
export async function verifyApiKey(env: Env, key: string): Promise<Principal> {
  const { ENVIRONMENT, PEPPERS } = settings(env);
  if (!isWellFormedKey(key, ENVIRONMENT))
    throw new AtelierError("unauthorized", "The API key is malformed: it is cut short, mistyped, or of another environment.");
  const hashes = await Promise.all(Object.keys(PEPPERS).map(id => pepperedHash(PEPPERS, id, key)));
  const [row] = await database(env)
    .select()
    .from(apiKeys)
    .where(
      and(
        inArray(
          apiKeys.hash,
          hashes.filter(hash => hash !== undefined),
        ),
        isNull(apiKeys.revoked_at),
      ),
    );
  if (!row) throw new AtelierError("unauthorized", "The API key is unknown or revoked.");
  return { tenant: row.tenant_id, key: row.id, scopes: row.scopes };
}

/** The token of the Authorization header. @throws AtelierError unauthorized where there is none */
export function bearerToken(context: AppContext, expected: string): string {
  const [, token] = /^Bearer +(\S+)$/i.exec(context.req.header("authorization") ?? "") ?? [];
  if (token === undefined) throw new AtelierError("unauthorized", `Expected the header Authorization: Bearer <${expected}>.`);
  return token;
}

/** The principal of a request. @throws AtelierError unauthorized without a valid key, forbidden where its scopes don't cover the method */
export async function authenticateContext(context: AppContext): Promise<Principal> {
  const principal = await verifyApiKey(context.env, bearerToken(context, "API key"));
  const needed: Scope = context.req.method === "GET" || context.req.method === "HEAD" ? "read" : "write";
  if (!principal.scopes.includes(needed)) throw new AtelierError("forbidden", `The key lacks the scope ${needed}.`);
  context.set("principal", principal);
  return principal;
}

/** Lets only requests with a valid key pass, and sets `principal`. */
export const authenticate: MiddlewareHandler<AppEnv> = async (context, next) => {
  await authenticateContext(context);
  await next();
};

/** Lets only the operator pass. */
export const authenticateAdmin: MiddlewareHandler<AppEnv> = async (context, next) => {
  if (!(await equalSecrets(bearerToken(context, "admin token"), settings(context.env).ADMIN_TOKEN)))
    throw new AtelierError("unauthorized", "The admin token is not valid.");
  await next();
};

/** Creates a runner's token `<id>.<secret>` for one pool. It is returned once; its secret is stored hashed. */
export async function createRunnerToken(env: Env, { name, pool }: { name: string; pool: string }) {
  const id = newId("runnerToken");
  const secret = randomBase62(KEY_DIGITS);
  await database(env)
    .insert(runnerTokens)
    .values({ id, name, pool, created_at: Date.now(), ...(await newPepperedHash(settings(env).PEPPERS, secret)) });
  return { id, token: `${id}.${secret}` };
}

/** The id and pool of a runner's token. @throws AtelierError unauthorized where it is malformed, unknown or revoked */
export async function verifyRunnerToken(env: Env, token: string): Promise<{ id: string; pool: string }> {
  const refused = new AtelierError("unauthorized", "The runner token is malformed, unknown or revoked.");
  const [, id, secret] = runnerTokenPattern.exec(token) ?? [];
  if (id === undefined || secret === undefined) throw refused;
  const [row] = await database(env)
    .select()
    .from(runnerTokens)
    .where(and(eq(runnerTokens.id, id), isNull(runnerTokens.revoked_at)));
  if (!row) throw refused;
  const hash = await pepperedHash(settings(env).PEPPERS, row.pepper_id, secret);
  if (hash === undefined || !(await equalSecrets(hash, row.hash))) throw refused;
  return { id: row.id, pool: row.pool };
}
