import { expect, it } from "vitest";
import { z } from "zod";
import { call } from "./support.ts";

const documentSchema = z.object({
  openapi: z.literal("3.1.0"),
  paths: z.record(
    z.string(),
    z.record(z.string(), z.looseObject({ summary: z.string(), security: z.array(z.record(z.string(), z.unknown())) })),
  ),
  components: z.object({
    schemas: z.record(z.string(), z.looseObject({ properties: z.record(z.string(), z.unknown()) })),
    securitySchemes: z.record(z.string(), z.unknown()),
  }),
});

it("describes every route with its summary, security and schemas", async () => {
  const answer = await call("/openapi.json");
  expect([answer.status, answer.headers.get("content-type")]).toEqual([200, "application/json"]);
  const text = await answer.text();
  const document = documentSchema.parse(JSON.parse(text));
  expect(
    Object.entries(document.paths)
      .flatMap(([path, methods]) => Object.keys(methods).map(method => `${method} ${path}`))
      .filter(route => route.includes("/v1/") && !route.includes("/admin/"))
      .sort(),
  ).toEqual([
    "delete /v1/adapters/{id}",
    "delete /v1/datasets/{id}",
    "delete /v1/generations/{id}",
    "delete /v1/trainings/{id}",
    "get /v1/adapters",
    "get /v1/adapters/{id}",
    "get /v1/datasets",
    "get /v1/datasets/{id}",
    "get /v1/datasets/{id}/files/{sha256}",
    "get /v1/generations",
    "get /v1/generations/{id}",
    "get /v1/jobs/{id}",
    "get /v1/jobs/{id}/events",
    "get /v1/models",
    "get /v1/models/{name}",
    "get /v1/pictures/{id}",
    "get /v1/trainings",
    "get /v1/trainings/{id}",
    "get /v1/trainings/{id}/files/{path}",
    "get /v1/uploads/{id}",
    "patch /v1/datasets/{id}/items/{sha256}",
    "post /v1/adapters",
    "post /v1/adapters/{id}/complete",
    "post /v1/datasets",
    "post /v1/generations",
    "post /v1/jobs/{id}/cancel",
    "post /v1/trainings",
    "post /v1/trainings/{id}/cancel",
    "post /v1/uploads",
    "put /v1/adapters/{id}/files/{sha256}",
    "put /v1/uploads/{id}",
  ]);
  for (const operation of Object.values(document.paths).flatMap(methods => Object.values(methods))) {
    expect(operation.security.length).toBeGreaterThan(0);
    for (const scheme of operation.security.flatMap(Object.keys))
      expect(Object.keys(document.components.securitySchemes)).toContain(scheme);
  }
  for (const [, name] of text.matchAll(/"#\/components\/schemas\/(\w+)"/g))
    expect(Object.keys(document.components.schemas)).toContain(name);
  expect(Object.keys(document.components.schemas.GenerationRequest!.properties)).toContain("guidance_rescale");
});

it("serves a reference page that runs nothing and loads nothing", async () => {
  const answer = await call("/docs");
  expect(answer.status).toBe(200);
  expect(answer.headers.get("content-security-policy")).toMatch(
    /^default-src 'none'; style-src 'nonce-[0-9a-f-]{36}'; base-uri 'none'; frame-ancestors 'none'$/,
  );
  const page = await answer.text();
  expect(page).not.toMatch(/<script|<link|src=/);
  for (const text of ["POST /v1/generations", "guidance_rescale?", 'id="Job"', "DELETE /admin/v1/keys/{id}"]) expect(page).toContain(text);
});

it("serves the playground with its own headers", async () => {
  const answer = await call("/");
  expect([answer.status, answer.headers.get("content-type")]).toEqual([200, "text/html; charset=utf-8"]);
  expect(answer.headers.get("content-security-policy")).toContain("default-src 'self'");
  expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
  await answer.text();
});

it("tells that it is there", async () => {
  expect(await (await call("/healthz")).json()).toEqual({ status: "ok" });
});
