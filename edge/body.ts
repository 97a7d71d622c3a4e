import type { MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { AtelierError } from "../shared/errors.ts";
import type { AppEnv } from "./http.ts";

/** Two prompts of the greatest length, every character escaped, and the rest. */
export const MAX_JSON_BYTES = 256 * 1024;

/** Refuses bodies that no request of the API needs. */
export const limitBody = bodyLimit({
  maxSize: MAX_JSON_BYTES,
  onError: () => {
    throw new AtelierError("payload_too_large", `Expected at most ${MAX_JSON_BYTES} bytes.`);
  },
});

/** For routes that take JSON: refuses what does not say that it is, before a validator takes it for an empty body. */
export const requireJson: MiddlewareHandler<AppEnv> = async (context, next) => {
  const type = context.req.header("content-type");
  if (!/^application\/json\s*(;|$)/i.test(type ?? "")) {
    throw new AtelierError("invalid_request", `Expected the header Content-Type: application/json, got ${type ?? "none"}.`);
  }
  await next();
};
