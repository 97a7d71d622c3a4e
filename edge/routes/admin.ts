import { createRoute, z } from "@hono/zod-openapi";
import { desc } from "drizzle-orm";
import {
  apiKeyViewSchema,
  createdKeySchema,
  createdTokenSchema,
  deadLetterSchema,
  poolStatusSchema,
  runnerTokenViewSchema,
  securityEventSchema,
} from "../../shared/admin.ts";
import { modelManifestSchema } from "../../shared/model.ts";
import { modelNameSchema, poolSchema } from "../../shared/names.ts";
import { publicJwk, publicJwkSchema } from "../../shared/signing.ts";
import { createApiKey, createRunnerToken, scopes } from "../auth.ts";
import { requireJson } from "../body.ts";
import { database } from "../database.ts";
import { settings } from "../env.ts";
import { createRouter } from "../http.ts";
import { log } from "../log.ts";
import { listModels } from "../models.ts";
import { administered, idParam, json, jsonBody, problems } from "../openapi.ts";
import { deleteModel, listApiKeys, listRunnerTokens, putModel, revokeApiKey, revokeRunnerToken } from "../operator.ts";
import { deadLetters, securityEvents } from "../schema.ts";

/** The operator's API, behind the admin token. */
export const adminRoutes = createRouter();

const label = z.string().min(1).max(100);
const revoked = { 204: { description: "Revoked" }, ...problems };
const listOf = <S extends z.ZodType>(schema: S, description: string) => ({
  200: json(z.object({ data: z.array(schema) }), description),
  ...problems,
});

const createKey = createRoute({
  method: "post",
  path: "/admin/v1/keys",
  summary: "Create an API key, and its tenant where there is none of that name",
  security: administered,
  middleware: requireJson,
  request: {
    body: jsonBody(
      z.strictObject({
        tenant: label,
        name: label,
        scopes: z.array(z.enum(scopes)).min(1).default(["read", "write"]),
      }),
    ),
  },
  responses: {
    201: json(createdKeySchema, "The key: shown now and never again"),
    ...problems,
  },
});
adminRoutes.openapi(createKey, async context => {
  const created = await createApiKey(context.env, context.req.valid("json"));
  log("info", "key created", { request_id: context.get("requestId"), key: created.id, tenant: created.tenant_id });
  return context.json(created, 201);
});

adminRoutes.openapi(
  createRoute({
    method: "get",
    path: "/admin/v1/keys",
    summary: "List API keys",
    security: administered,
    responses: listOf(apiKeyViewSchema, "Keys, newest first"),
  }),
  async context => context.json({ data: await listApiKeys(context.env) }, 200),
);

adminRoutes.openapi(
  createRoute({
    method: "delete",
    path: "/admin/v1/keys/{id}",
    summary: "Revoke an API key",
    security: administered,
    request: { params: idParam("key") },
    responses: revoked,
  }),
  async context => {
    await revokeApiKey(context.env, context.req.valid("param").id);
    return context.body(null, 204);
  },
);

const createToken = createRoute({
  method: "post",
  path: "/admin/v1/runner-tokens",
  summary: "Create a runner token for one pool",
  security: administered,
  middleware: requireJson,
  request: { body: jsonBody(z.strictObject({ name: label, pool: poolSchema })) },
  responses: {
    201: json(createdTokenSchema, "The token: shown now and never again"),
    ...problems,
  },
});
adminRoutes.openapi(createToken, async context => {
  const created = await createRunnerToken(context.env, context.req.valid("json"));
  log("info", "runner token created", { request_id: context.get("requestId"), token: created.id });
  return context.json(created, 201);
});

adminRoutes.openapi(
  createRoute({
    method: "get",
    path: "/admin/v1/runner-tokens",
    summary: "List runner tokens",
    security: administered,
    responses: listOf(runnerTokenViewSchema, "Tokens, newest first"),
  }),
  async context => context.json({ data: await listRunnerTokens(context.env) }, 200),
);

adminRoutes.openapi(
  createRoute({
    method: "delete",
    path: "/admin/v1/runner-tokens/{id}",
    summary: "Revoke a runner token: its sockets are closed and its leases end",
    security: administered,
    request: { params: idParam("runnerToken") },
    responses: revoked,
  }),
  async context => {
    await revokeRunnerToken(context.env, context.req.valid("param").id);
    return context.body(null, 204);
  },
);

const nameParam = z.object({ name: modelNameSchema });
adminRoutes.openapi(
  createRoute({
    method: "put",
    path: "/admin/v1/models/{name}",
    summary: "Register a model, or change what its name stands for",
    security: administered,
    middleware: requireJson,
    request: {
      params: nameParam,
      body: jsonBody(modelManifestSchema.omit({ name: true })),
    },
    responses: { 200: json(modelManifestSchema, "The model as it is served from now on"), ...problems },
  }),
  async context => {
    const manifest = { ...context.req.valid("json"), name: context.req.valid("param").name };
    await putModel(context.env, manifest);
    log("info", "model registered", {
      request_id: context.get("requestId"),
      model: manifest.name,
      hash: manifest.hash,
      pool: manifest.pool,
    });
    return context.json(manifest, 200);
  },
);

adminRoutes.openapi(
  createRoute({
    method: "get",
    path: "/admin/v1/models",
    summary: "List models with their pools",
    security: administered,
    responses: listOf(modelManifestSchema, "Models, by name"),
  }),
  async context => context.json({ data: await listModels(database(context.env)) }, 200),
);

adminRoutes.openapi(
  createRoute({
    method: "delete",
    path: "/admin/v1/models/{name}",
    summary: "Take a model out of service",
    description: "Its cache entries go, and pictures that no generation shows.",
    security: administered,
    request: { params: nameParam },
    responses: { 204: { description: "Removed" }, ...problems },
  }),
  async context => {
    await deleteModel(context.env, context.req.valid("param").name);
    return context.body(null, 204);
  },
);

const MAX_LISTED = 200;
adminRoutes.openapi(
  createRoute({
    method: "get",
    path: "/admin/v1/dead-letters",
    summary: "Queue messages that could not be delivered",
    security: administered,
    responses: listOf(deadLetterSchema, `The last ${MAX_LISTED}, newest first`),
  }),
  async context =>
    context.json(
      { data: await database(context.env).select().from(deadLetters).orderBy(desc(deadLetters.created_at)).limit(MAX_LISTED) },
      200,
    ),
);

adminRoutes.openapi(
  createRoute({
    method: "get",
    path: "/admin/v1/security-events",
    summary: "Forged offers, refused capabilities and the like",
    security: administered,
    responses: listOf(securityEventSchema, `The last ${MAX_LISTED}, newest first`),
  }),
  async context =>
    context.json(
      { data: await database(context.env).select().from(securityEvents).orderBy(desc(securityEvents.created_at)).limit(MAX_LISTED) },
      200,
    ),
);

adminRoutes.openapi(
  createRoute({
    method: "get",
    path: "/admin/v1/dispatchers/{pool}",
    summary: "A pool's runners and executions; asking makes its dispatcher sweep",
    security: administered,
    request: { params: z.object({ pool: poolSchema }) },
    responses: { 200: json(poolStatusSchema, "The pool"), ...problems },
  }),
  async context => {
    const status = await context.env.DISPATCHER.getByName(context.req.valid("param").pool).sweep({ v: 1 });
    return context.json(poolStatusSchema.parse(status), 200);
  },
);

adminRoutes.openapi(
  createRoute({
    method: "get",
    path: "/admin/v1/grant-keys",
    summary: "Public keys by which runners verify grants (JWKS)",
    security: administered,
    responses: { 200: json(z.object({ keys: z.array(publicJwkSchema) }), "The keys"), ...problems },
  }),
  context => context.json({ keys: [publicJwk(settings(context.env).GRANT_KEY)] }, 200),
);
