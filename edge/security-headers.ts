import type { MiddlewareHandler } from "hono";
import type { AppEnv } from "./http.ts";

const everywhere = {
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "strict-transport-security": "max-age=31536000",
} as const;

const answers = {
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
  "cache-control": "no-store",
} as const;

const pages = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "cross-origin-opener-policy": "same-origin",
  "permissions-policy": "camera=(), microphone=(), geolocation=()",
} as const;

function setting(own: Readonly<Record<string, string>>): MiddlewareHandler<AppEnv> {
  return async (context, next) => {
    await next();
    // The answer of another Worker or object has immutable headers, hence the copy. What a route has set itself stays.
    if (context.res.webSocket) return;
    context.res = new Response(context.res.body, context.res);
    for (const [name, value] of Object.entries({ ...everywhere, ...own }))
      if (!context.res.headers.has(name)) context.res.headers.set(name, value);
  };
}

/** Headers of what programs read: nothing in it may be run, framed or kept. */
export const answerHeaders = setting(answers);
/** Headers of what people read: only the page's own files, no inline code. */
export const pageHeaders = setting(pages);
