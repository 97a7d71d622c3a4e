import { and, eq, isNull, lt, lte, sql } from "drizzle-orm";
import { ulid } from "ulid";
import { z } from "zod";
import { canonicalize, type Json, sha256Hex } from "../shared/canonical.ts";
import { AtelierError } from "../shared/errors.ts";
import { type Database, database } from "./database.ts";
import type { AppContext } from "./http.ts";
import { idempotencyKeys } from "./schema.ts";

/** An answer that can be stored and given again. */
export interface Answer<Body> {
  readonly status: 200 | 201 | 202;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Body;
}

const keyPattern = /^[\x21-\x7e]{1,255}$/;
/** After this long without an answer a request counts as crashed, and its repeat takes over. */
const ABANDONED_MS = 120_000;
const KEPT_MS = 24 * 3600_000;
const storedSchema = z.object({ headers: z.record(z.string(), z.string()), body: z.unknown() });

/**
 * Answers a POST once per Idempotency-Key: repeats with the same body get the stored answer, marked `Idempotent-Replayed: true`, for 24 hours.
 * Errors are not stored: a repeat tries again. `answer` gets the ULID for what it creates, the same one where it takes over a crashed request.
 * @throws AtelierError idempotency_key_malformed, idempotency_in_flight, idempotency_mismatch
 */
export async function answerOnce<Body>(
  context: AppContext,
  schema: z.ZodType<Body>,
  answer: (ulid: string) => Promise<Answer<Body>>,
): Promise<Answer<Body>> {
  const key = context.req.header("idempotency-key");
  if (key === undefined) return answer(ulid());
  if (!keyPattern.test(key)) throw new AtelierError("idempotency_key_malformed", "Expected 1 to 255 visible ASCII characters.");
  const db = database(context.env);
  const request = { path: context.req.path, body_sha256: await bodyHash(context) };
  const claimed = await claim(db, { tenant_id: context.get("principal").tenant, key, ...request });
  if (claimed.answered) {
    const { headers, body } = storedSchema.parse(JSON.parse(claimed.row.response ?? ""));
    return {
      status: z.literal([200, 201, 202]).parse(claimed.row.status),
      headers: { ...headers, "idempotent-replayed": "true" },
      body: schema.parse(body),
    };
  }
  const mine = and(
    eq(idempotencyKeys.tenant_id, claimed.row.tenant_id),
    eq(idempotencyKeys.key, key),
    eq(idempotencyKeys.created_at, claimed.row.created_at),
  );
  try {
    const { status, headers, body } = await answer(claimed.row.ulid);
    await db
      .update(idempotencyKeys)
      .set({ status, response: JSON.stringify({ headers, body }) })
      .where(mine);
    return { status, headers, body };
  } catch (error) {
    const unanswered = and(mine, isNull(idempotencyKeys.status));
    // A refusal has created nothing. After anything else the row and its ULID stay, to be taken over by the next repeat at once.
    if (error instanceof AtelierError) await db.delete(idempotencyKeys).where(unanswered);
    else
      await db
        .update(idempotencyKeys)
        .set({ created_at: claimed.row.created_at - ABANDONED_MS })
        .where(unanswered);
    throw error;
  }
}

/** A form's content: every attempt to send it draws another boundary. */
async function bodyHash(context: AppContext): Promise<string> {
  const isForm = /^multipart\/form-data\s*;/i.test(context.req.header("content-type") ?? "");
  const form = isForm ? await context.req.formData().catch(() => undefined) : undefined;
  if (!form) return sha256Hex(new Uint8Array(await context.req.arrayBuffer()));
  const entries: Json[] = [];
  for (const [name, value] of form.entries())
    entries.push(
      typeof value === "string" ? [name, value] : [name, value.name, await sha256Hex(new Uint8Array(await value.arrayBuffer()))],
    );
  return sha256Hex(canonicalize(entries));
}

type Row = typeof idempotencyKeys.$inferSelect;

/** Takes the key for this request, or finds the answer that it already has. */
async function claim(
  db: Database,
  request: Pick<Row, "tenant_id" | "key" | "path" | "body_sha256">,
): Promise<{ row: Row; answered: boolean }> {
  const now = Date.now();
  const [, taken, [row]] = await db.batch([
    db.delete(idempotencyKeys).where(lt(idempotencyKeys.created_at, now - KEPT_MS)),
    db
      .insert(idempotencyKeys)
      .values({ ...request, ulid: ulid(), created_at: now })
      .onConflictDoUpdate({
        target: [idempotencyKeys.tenant_id, idempotencyKeys.key],
        set: { created_at: now },
        setWhere: and(
          isNull(idempotencyKeys.status),
          lte(idempotencyKeys.created_at, now - ABANDONED_MS),
          eq(idempotencyKeys.path, sql`excluded.path`),
          eq(idempotencyKeys.body_sha256, sql`excluded.body_sha256`),
        ),
      })
      .returning(),
    db
      .select()
      .from(idempotencyKeys)
      .where(and(eq(idempotencyKeys.tenant_id, request.tenant_id), eq(idempotencyKeys.key, request.key))),
  ]);
  if (taken[0]) return { row: taken[0], answered: false };
  if (!row || row.path !== request.path || row.body_sha256 !== request.body_sha256) throw new AtelierError("idempotency_mismatch");
  if (row.status === null) throw new AtelierError("idempotency_in_flight");
  return { row, answered: true };
}
