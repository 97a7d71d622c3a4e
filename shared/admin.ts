import { z } from "zod";
import { idSchema, poolSchema } from "./names.ts";

/** What the operator's API answers. Times are milliseconds since 1970. */

const time = z.int().describe("milliseconds since 1970");

/** An API key, without its secret. */
export const apiKeyViewSchema = z.object({
  id: idSchema("key"),
  tenant: z.string(),
  name: z.string(),
  scopes: z.array(z.string()),
  created_at: time,
  revoked_at: time.nullable(),
});

/** A key that was just made: shown now and never again. */
export const createdKeySchema = z.object({ id: idSchema("key"), tenant_id: idSchema("tenant"), key: z.string() });

/** A runner's token, without its secret. */
export const runnerTokenViewSchema = z.object({
  id: idSchema("runnerToken"),
  name: z.string(),
  pool: z.string(),
  created_at: time,
  revoked_at: time.nullable(),
});

/** A token that was just made: shown now and never again. */
export const createdTokenSchema = z.object({ id: idSchema("runnerToken"), token: z.string() });

/** A queue message that could not be delivered. */
export const deadLetterSchema = z.object({ id: z.string(), queue: z.string(), body: z.string(), attempts: z.int(), created_at: time });

/** A forged offer, a refused capability, or the like. */
export const securityEventSchema = z.object({ id: z.string(), kind: z.string(), detail: z.unknown(), created_at: time });

/** A pool's connected runners, and how many of its executions are in which state. */
export const poolStatusSchema = z.object({
  pool: poolSchema,
  runners: z.array(
    z.object({
      instance: idSchema("instance"),
      token: z.string(),
      provider: z.string(),
      models: z.array(z.string()),
      ready: z.int(),
      leases: z.int(),
      last_seen: time,
    }),
  ),
  queued: z.int(),
  leased: z.int(),
  committing: z.int(),
});
export type PoolStatus = z.infer<typeof poolStatusSchema>;
