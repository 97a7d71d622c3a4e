import { z } from "@hono/zod-openapi";
import { problemSchema } from "../shared/errors.ts";
import { type IdKind, idSchema } from "../shared/names.ts";

/** Pieces that the route definitions share. */
export const secured = [{ apiKey: [] }];
export const administered = [{ adminToken: [] }];

/** A JSON body or answer of this schema. */
export function json<S extends z.ZodType>(schema: S, description: string) {
  return { description, content: { "application/json": { schema } } };
}

/** A body that has to be JSON of this schema; the route needs the middleware `requireJson` as well. */
export function jsonBody<S extends z.ZodType>(schema: S) {
  return { required: true, content: { "application/json": { schema } } } as const;
}

/** Every route's errors. */
export const problems = {
  default: { description: "What went wrong, after RFC 9457", content: { "application/problem+json": { schema: problemSchema } } },
} as const;

/** The path parameter `id`. One that is malformed names nothing, so it answers 404 like any other unknown id. */
export function idParam(kind: IdKind) {
  return z.object({ id: idSchema(kind) });
}

/** What a signed URL has in its query. */
export const signedQuery = z.strictObject({ expires: z.coerce.number().int().positive().optional(), signature: z.string().optional() });

export const idempotencyHeader = z.object({
  "idempotency-key": z.string().optional().describe("repeats with the same key and body get the first answer, for 24 hours"),
});
