import { createRoute, z } from "@hono/zod-openapi";
import { AtelierError } from "../../shared/errors.ts";
import { type ModelManifest, type ModelView, modelViewSchema } from "../../shared/model.ts";
import { modelNameSchema } from "../../shared/names.ts";
import { database } from "../database.ts";
import { createRouter } from "../http.ts";
import { findModel, listModels } from "../models.ts";
import { json, problems, secured } from "../openapi.ts";

export const modelRoutes = createRouter();

function modelView({ pool: _hidden, ...manifest }: ModelManifest): ModelView {
  return { object: "model", ...manifest };
}

const list = createRoute({
  method: "get",
  path: "/v1/models",
  summary: "The models that are served",
  security: secured,
  responses: { 200: json(z.object({ object: z.literal("list"), data: z.array(modelViewSchema) }), "All models, by name"), ...problems },
});

modelRoutes.openapi(list, async context => {
  const models = await listModels(database(context.env));
  return context.json({ object: "list" as const, data: models.map(modelView) }, 200);
});

const get = createRoute({
  method: "get",
  path: "/v1/models/{name}",
  summary: "A model: its sizes and defaults",
  security: secured,
  request: { params: z.object({ name: modelNameSchema }) },
  responses: { 200: json(modelViewSchema, "The model"), ...problems },
});

modelRoutes.openapi(get, async context => {
  const model = await findModel(database(context.env), context.req.valid("param").name);
  if (!model) throw new AtelierError("not_found");
  return context.json(modelView(model), 200);
});
