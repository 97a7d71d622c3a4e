import type { MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { AtelierError } from "../shared/errors.ts";
import { MAX_INPUT_BYTES } from "../shared/upload.ts";
import type { AppContext, AppEnv } from "./http.ts";

/** Two prompts of the greatest length, every character escaped, and the rest. */
export const MAX_JSON_BYTES = 256 * 1024;
/** A request with pictures in it. It is held in memory several times over; larger ones name uploads. */
export const MAX_GENERATION_BYTES = 12 * 1024 * 1024;
/**
 * Adapter files in one form, which is in memory up to three times: as it came, parsed, and the file that is hashed. A Worker has 128 MB.
 * Larger ones are streamed to the URLs that a JSON description is answered with.
 */
export const MAX_FORM_BYTES = 24 * 1024 * 1024;

const limits: Readonly<Record<string, MiddlewareHandler<AppEnv>>> = {
  "/v1/generations": atMost(MAX_GENERATION_BYTES),
  "/v1/uploads": atMost(MAX_INPUT_BYTES),
  "/v1/adapters": atMost(MAX_FORM_BYTES),
  "/v1/datasets": atMost(MAX_FORM_BYTES),
};
const limitOthers = atMost(MAX_JSON_BYTES);

/** Refuses bodies that no request of the API needs. */
export const limitBody: MiddlewareHandler<AppEnv> = (context, next) => (limits[context.req.path] ?? limitOthers)(context, next);

function atMost(bytes: number): MiddlewareHandler<AppEnv> {
  return bodyLimit({
    maxSize: bytes,
    onError: () => {
      throw new AtelierError("payload_too_large", `Expected at most ${bytes} bytes.`);
    },
  });
}

/** Whether the request says that its body is JSON. */
export function isJson(context: AppContext): boolean {
  return /^application\/json\s*(;|$)/i.test(context.req.header("content-type") ?? "");
}

/** For routes that take JSON: refuses what does not say that it is, before a validator takes it for an empty body. */
export const requireJson: MiddlewareHandler<AppEnv> = async (context, next) => {
  if (!isJson(context)) {
    const got = context.req.header("content-type") ?? "none";
    throw new AtelierError("invalid_request", `Expected the header Content-Type: application/json, got ${got}.`);
  }
  await next();
};
