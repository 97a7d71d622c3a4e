import { OpenAPIHono } from "@hono/zod-openapi";
import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import { AtelierError, errorTable, problemOf } from "../shared/errors.ts";
import type { Principal } from "./auth.ts";
import type { Env } from "./env.ts";
import { fieldErrors } from "./field-errors.ts";
import { errorFields, log } from "./log.ts";

/** What every handler finds in its context. `principal` is set behind `authenticate`. */
export interface AppEnv {
  Bindings: Env;
  Variables: { requestId: string; principal: Principal };
}
export type AppContext = Context<AppEnv>;

/** A router whose validation errors become problem documents. */
export function createRouter(): OpenAPIHono<AppEnv> {
  return new OpenAPIHono<AppEnv>({
    defaultHook: async (result, context) => {
      if (result.success) return;
      if (result.target === "param") throw new AtelierError("not_found");
      const input: unknown = result.target === "json" ? await context.req.json() : context.req.query();
      throw new AtelierError("invalid_request", undefined, { errors: fieldErrors(result.error, input) });
    },
  });
}

/** Answers an error as RFC 9457 problem document. What is not an AtelierError is logged, and the client learns only the request id. */
export function answerError(error: Error, context: AppContext): Response {
  const requestId = context.get("requestId");
  const known = asAtelierError(error);
  if (!known) log("error", "unexpected error", { request_id: requestId, ...errorFields(error) });
  const problem = known ? problemOf(known.code, requestId, known.message, known.errors) : problemOf("internal", requestId);
  if (problem.code === "unauthorized") context.header("www-authenticate", 'Bearer realm="atelier"');
  if (problem.code === "idempotency_in_flight" || problem.code === "unavailable") context.header("retry-after", "2");
  return context.body(JSON.stringify(problem), errorTable[problem.code].status, { "content-type": "application/problem+json" });
}

function asAtelierError(error: Error): AtelierError | undefined {
  if (error instanceof AtelierError) return error;
  // Hono's own refusals: a body that does not parse, and a body of a type that the route's description does not name.
  if (error instanceof HTTPException && error.status === 415)
    return new AtelierError("invalid_request", "The header Content-Type names a type that this resource does not take.");
  if (error instanceof HTTPException && error.status === 400) return new AtelierError("invalid_json");
  return undefined;
}
