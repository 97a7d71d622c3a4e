import { createRoute, z } from "@hono/zod-openapi";
import { AtelierError } from "../../shared/errors.ts";
import { idSchema, sameUlid, sha256Schema } from "../../shared/names.ts";
import {
  datasetItemPatchSchema,
  datasetItemViewSchema,
  datasetRequestSchema,
  datasetSummarySchema,
  datasetViewSchema,
} from "../../shared/training-api.ts";
import { isJson, requireJson } from "../body.ts";
import { database } from "../database.ts";
import { type Collected, collectForm, collectReferences, datasetView, itemView } from "../datasets.ts";
import { type AppContext, createRouter } from "../http.ts";
import { answerOnce } from "../idempotency.ts";
import { log } from "../log.ts";
import { idempotencyHeader, idParam, json, jsonBody, problems, secured } from "../openapi.ts";
import { type TenantStore, tenantStore } from "../tenant.ts";
import type { StoredDataset } from "../tenant-datasets.ts";
import { datasetKey } from "../training-files.ts";

/** Pictures with captions that something is learned from. */
export const datasetRoutes = createRouter();

function storeOf(context: AppContext): TenantStore {
  return tenantStore(database(context.env), context.get("principal").tenant);
}

async function datasetOf(context: AppContext, id: string): Promise<StoredDataset> {
  const found = await storeOf(context).dataset(id);
  if (!found) throw new AtelierError("not_found");
  return found;
}

const file = { type: "string", format: "binary" } as const;
const text = { type: "string" } as const;
// Widely typed, so that the JSON body alone is what the route's types tell.
const form: Readonly<Record<string, { schema: { type: "object"; properties: Record<string, typeof file | typeof text> } }>> = {
  "multipart/form-data": { schema: { type: "object", properties: { name: text, file, zip: file, captions: text, metadata: text } } },
};

datasetRoutes.openapi(
  createRoute({
    method: "post",
    path: "/v1/datasets",
    summary: "Make a dataset",
    description:
      "With a form (`multipart/form-data`, up to 24 MiB): pictures in fields `file` or in one `zip`, captions in `captions` (JSON: file name to caption), in `metadata` (JSON lines as Hugging Face's ImageFolder has them: `file_name`, `caption` or `text`, `split`, `mask`, `condition`, `concept`), or in files `x.txt` beside `x.png`. With JSON: of uploads and pictures that there are. The same picture twice is one.",
    security: secured,
    request: { headers: idempotencyHeader, body: { content: { "application/json": { schema: datasetRequestSchema }, ...form } } },
    responses: { 201: json(datasetViewSchema, "The dataset"), ...problems },
  }),
  async context => {
    const described = isJson(context) ? context.req.valid("json") : undefined;
    const answer = await answerOnce(context, datasetViewSchema, async ulid => {
      const id = sameUlid(`_${ulid}`, "dataset");
      const store = storeOf(context);
      const { name, files, items } = described
        ? { name: described.name, ...(await collectReferences(context.env, store, described)) }
        : await formOf(context, store);
      await store.createDataset({ id, name, created_at: Date.now() }, files, items);
      log("info", "dataset made", { request_id: context.get("requestId"), dataset: id, pictures: items.length });
      return { status: 201, headers: { location: `/v1/datasets/${id}` }, body: datasetView(await datasetOf(context, id)) };
    });
    for (const [name, value] of Object.entries(answer.headers)) context.header(name, value);
    return context.json(answer.body, 201);
  },
);

async function formOf(context: AppContext, store: TenantStore): Promise<Collected & { name: string }> {
  const type = context.req.header("content-type") ?? "none";
  if (!/^multipart\/form-data\s*;/i.test(type))
    throw new AtelierError("invalid_request", `Expected the header Content-Type: application/json or multipart/form-data, got ${type}.`);
  const form = await context.req.formData().catch(() => {
    throw new AtelierError("invalid_request", "The form does not parse.");
  });
  const name = datasetRequestSchema.shape.name.safeParse(form.get("name"));
  if (!name.success)
    throw new AtelierError("invalid_request", undefined, { errors: [{ field: "name", expected: "text of 1 to 100 characters" }] });
  return { name: name.data, ...(await collectForm(context.env, store, form)) };
}

const MAX_PAGE = 50;
datasetRoutes.openapi(
  createRoute({
    method: "get",
    path: "/v1/datasets",
    summary: "List datasets, newest first",
    security: secured,
    request: {
      query: z.strictObject({
        limit: z.coerce.number().int().min(1).max(MAX_PAGE).default(20),
        cursor: idSchema("dataset").optional().describe("next_cursor of the page before"),
      }),
    },
    responses: {
      200: json(
        z.object({
          object: z.literal("list"),
          data: z.array(datasetSummarySchema),
          next_cursor: idSchema("dataset").nullable().describe("null on the last page"),
        }),
        "A page of datasets",
      ),
      ...problems,
    },
  }),
  async context => {
    const { limit, cursor } = context.req.valid("query");
    const found = await storeOf(context).listDatasets(limit + 1, cursor);
    const data = found.slice(0, limit).map(({ id, name, created_at, pictures }) => ({
      ...{ id, object: "dataset" as const, name, pictures },
      created_at: new Date(created_at).toISOString(),
    }));
    return context.json({ object: "list" as const, data, next_cursor: found.length > limit ? data.at(-1)!.id : null }, 200);
  },
);

datasetRoutes.openapi(
  createRoute({
    method: "get",
    path: "/v1/datasets/{id}",
    summary: "A dataset and what is said of its pictures",
    security: secured,
    request: { params: idParam("dataset") },
    responses: { 200: json(datasetViewSchema, "The dataset"), ...problems },
  }),
  async context => context.json(datasetView(await datasetOf(context, context.req.valid("param").id)), 200),
);

const fileParam = idParam("dataset").extend({ sha256: sha256Schema });
datasetRoutes.openapi(
  createRoute({
    method: "get",
    path: "/v1/datasets/{id}/files/{sha256}",
    summary: "A picture of a dataset, as it was sent",
    security: secured,
    request: { params: fileParam },
    responses: { 200: { description: "The file", content: { "image/png": {}, "image/webp": {}, "image/jpeg": {} } }, ...problems },
  }),
  async context => {
    const { id, sha256 } = context.req.valid("param");
    const { dataset, files } = await datasetOf(context, id);
    const row = files.find(entry => entry.sha256 === sha256);
    const object = row && (await context.env.BUCKET.get(datasetKey(dataset.tenant_id, sha256)));
    if (!object) throw new AtelierError("not_found");
    const headers = { "content-type": row.media_type, "content-length": String(object.size), etag: `"${sha256}"` };
    return new Response(object.body, { headers: { ...headers, "cache-control": "private, immutable, max-age=31536000" } });
  },
);

datasetRoutes.openapi(
  createRoute({
    method: "patch",
    path: "/v1/datasets/{id}/items/{sha256}",
    summary: "Change what is said of a picture",
    description: "Trainings that were accepted before keep what was said then.",
    security: secured,
    middleware: requireJson,
    request: { params: fileParam, body: jsonBody(datasetItemPatchSchema) },
    responses: { 200: json(datasetItemViewSchema, "The picture"), ...problems },
  }),
  async context => {
    const { id, sha256 } = context.req.valid("param");
    const changes = context.req.valid("json");
    const { files } = await datasetOf(context, id);
    for (const field of ["mask", "condition"] as const) {
      const named = changes[field];
      if (named != null && !files.some(entry => entry.sha256 === named))
        throw new AtelierError("invalid_request", undefined, {
          errors: [{ field, expected: "the hash of a file of this dataset", got: named }],
        });
    }
    const row = await storeOf(context).changeItem(id, sha256, changes);
    if (!row) throw new AtelierError("not_found");
    return context.json(itemView(row, files), 200);
  },
);

datasetRoutes.openapi(
  createRoute({
    method: "delete",
    path: "/v1/datasets/{id}",
    summary: "Delete a dataset",
    description: "Trainings that were accepted go on.",
    security: secured,
    request: { params: idParam("dataset") },
    responses: { 204: { description: "Deleted" }, ...problems },
  }),
  async context => {
    if (!(await storeOf(context).deleteDataset(context.req.valid("param").id))) throw new AtelierError("not_found");
    return context.body(null, 204);
  },
);
