import type { OpenAPIHono } from "@hono/zod-openapi";
import type { AppEnv } from "./http.ts";

/** The API's description (OpenAPI 3.1), from the same schemas by which requests are parsed. */
export function describeApi(app: OpenAPIHono<AppEnv>, origin: string) {
  return app.getOpenAPI31Document({
    openapi: "3.1.0",
    info: {
      title: "Atelier",
      version: "1",
      description: "Makes pictures with diffusion models. Repeated requests are answered from a cache with identical bytes.",
    },
    servers: [{ url: origin }],
  });
}
