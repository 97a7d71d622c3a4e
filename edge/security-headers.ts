import type { MiddlewareHandler } from "hono";
import type { AppEnv } from "./http.ts";

/** Headers of what programs read: nothing in it may be run, framed or kept. The page's own stand in edge/ui/_headers. */
const defaults = {
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "cache-control": "no-store",
  "referrer-policy": "no-referrer",
  "strict-transport-security": "max-age=31536000",
  "x-content-type-options": "nosniff",
} as const;

/** Sets the headers that a route has not set itself. */
export const securityHeaders: MiddlewareHandler<AppEnv> = async (context, next) => {
  await next();
  // What another object has answered has immutable headers, hence the copy.
  context.res = new Response(context.res.body, context.res);
  for (const [name, value] of Object.entries(defaults)) if (!context.res.headers.has(name)) context.res.headers.set(name, value);
};
