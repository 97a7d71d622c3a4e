import { createRoute, z } from "@hono/zod-openapi";
import { adapterFileSchema } from "../../shared/adapter.ts";
import { AtelierError } from "../../shared/errors.ts";
import { idSchema, sameUlid } from "../../shared/names.ts";
import { type TrainingCreate, type TrainingView, trainingCreateSchema, trainingViewSchema } from "../../shared/training-api.ts";
import { removeFiles } from "../artifacts.ts";
import { authenticateContext } from "../auth.ts";
import { requireJson } from "../body.ts";
import { database } from "../database.ts";
import { settings } from "../env.ts";
import { type AppContext, createRouter } from "../http.ts";
import { answerOnce } from "../idempotency.ts";
import { acceptTraining, cancelJob } from "../jobs.ts";
import { modelOf } from "../models.ts";
import { idempotencyHeader, idParam, json, jsonBody, problems, secured, signedQuery } from "../openapi.ts";
import { type TenantStore, tenantStore } from "../tenant.ts";
import { signedTraining, type TrainingRow } from "../tenant-datasets.ts";
import { trainingFiles } from "../training-files.ts";
import { planTraining, type StoredTraining, trainingOf, trainingViews } from "../trainings.ts";
import { downloadUrl, isValidDownloadUrl } from "../upload-urls.ts";

/** Trainings. The first are mounted before the API's authentication: a signed URL stands in for the key. */
export const trainingFileRoutes = createRouter();
export const trainingRoutes = createRouter();

function storeOf(context: AppContext): TenantStore {
  return tenantStore(database(context.env), context.get("principal").tenant);
}

function filePath(id: string, path: string): string {
  return `/v1/trainings/${id}/files/${path}`;
}

/** Views as they may be stored: without what gives access to a file. */
function unsigned(context: AppContext, stored: readonly StoredTraining[]): Promise<TrainingView[]> {
  return trainingViews(context.env, stored, async () => null);
}

/** Adds a fresh URL for each file. */
async function signed(context: AppContext, view: TrainingView): Promise<TrainingView> {
  const { origin } = new URL(context.req.url);
  const { PICTURE_URL_TTL_S } = settings(context.env);
  const urlOf = async (path: string) => `${origin}${await downloadUrl(context.env, filePath(view.id, path), PICTURE_URL_TTL_S)}`;
  return { ...view, files: await Promise.all(view.files.map(async file => ({ ...file, url: await urlOf(file.path) }))) };
}

trainingRoutes.openapi(
  createRoute({
    method: "post",
    path: "/v1/trainings",
    summary: "Train",
    description:
      "Answers 202 with the training; `GET /v1/jobs/{id}/events` of its job tells how it goes. What is absent takes the default of method and model family. With `dry_run` it only measures a few steps, and `estimate` says how long the whole training takes and in how much memory.",
    security: secured,
    middleware: requireJson,
    request: { headers: idempotencyHeader, body: jsonBody(trainingCreateSchema) },
    responses: { 202: json(trainingViewSchema, "The training, which has not ended yet"), ...problems },
  }),
  async context => {
    const asked = context.req.valid("json");
    const answer = await answerOnce(context, trainingViewSchema, async ulid => {
      const [view] = await unsigned(context, [await accept(context, asked, ulid)]);
      return { status: 202, headers: { location: `/v1/trainings/${view!.id}`, "retry-after": "1" }, body: view! };
    });
    for (const [name, value] of Object.entries(answer.headers)) context.header(name, value);
    return context.json(answer.body, 202);
  },
);

async function accept(context: AppContext, asked: TrainingCreate, ulid: string): Promise<StoredTraining> {
  const store = storeOf(context);
  const id = sameUlid(`_${ulid}`, "training");
  const model = await modelOf(database(context.env), asked.model, "model");
  const dataset = await store.dataset(asked.dataset);
  if (!dataset)
    throw new AtelierError("invalid_request", undefined, {
      errors: [{ field: "dataset", expected: "the id of a dataset of GET /v1/datasets", got: JSON.stringify(asked.dataset) }],
    });
  const { request, params, hash, inputs } = await planTraining(store, asked, model, dataset);
  const createdAt = Date.now();
  await acceptTraining(context.env, store, {
    ...{ id, job: sameUlid(id, "job"), execution: sameUlid(id, "execution"), name: asked.name, dataset: asked.dataset },
    ...{ pool: model.pool, modelHash: model.hash, request, seed: request.seed, params, hash, inputs },
    ...{ requestId: context.get("requestId"), createdAt, deadlineAt: createdAt + asked.deadline * 1000 },
  });
  return (await trainingOf(store, id))!;
}

const MAX_PAGE = 50;
trainingRoutes.openapi(
  createRoute({
    method: "get",
    path: "/v1/trainings",
    summary: "List trainings, newest first",
    security: secured,
    request: {
      query: z.strictObject({
        limit: z.coerce.number().int().min(1).max(MAX_PAGE).default(20),
        cursor: idSchema("training").optional().describe("next_cursor of the page before"),
      }),
    },
    responses: {
      200: json(
        z.object({
          object: z.literal("list"),
          data: z.array(trainingViewSchema),
          next_cursor: idSchema("training").nullable().describe("null on the last page"),
        }),
        "A page of trainings",
      ),
      ...problems,
    },
  }),
  async context => {
    const { limit, cursor } = context.req.valid("query");
    const store = storeOf(context);
    const found = await store.listTrainings(limit + 1, cursor);
    const stored = await Promise.all(found.slice(0, limit).map(({ id }) => trainingOf(store, id)));
    const views = await unsigned(
      context,
      stored.filter(entry => entry !== undefined),
    );
    const data = await Promise.all(views.map(view => signed(context, view)));
    return context.json({ object: "list" as const, data, next_cursor: found.length > limit ? data.at(-1)!.id : null }, 200);
  },
);

async function shown(context: AppContext, id: string): Promise<TrainingView> {
  const stored = await trainingOf(storeOf(context), id);
  if (!stored) throw new AtelierError("not_found");
  const [view] = await unsigned(context, [stored]);
  return view!;
}

trainingRoutes.openapi(
  createRoute({
    method: "get",
    path: "/v1/trainings/{id}",
    summary: "A training: its state, report and files",
    security: secured,
    request: { params: idParam("training") },
    responses: { 200: json(trainingViewSchema, "The training"), ...problems },
  }),
  async context => context.json(await signed(context, await shown(context, context.req.valid("param").id)), 200),
);

trainingRoutes.openapi(
  createRoute({
    method: "post",
    path: "/v1/trainings/{id}/cancel",
    summary: "Cancel a training",
    description: "Its last checkpoint stays among its files for a day. One that has ended stays as it is.",
    security: secured,
    request: { params: idParam("training"), headers: idempotencyHeader },
    responses: { 200: json(trainingViewSchema, "The training, which has ended"), ...problems },
  }),
  async context => {
    const { id } = context.req.valid("param");
    const answer = await answerOnce(context, trainingViewSchema, async () => {
      const stored = await trainingOf(storeOf(context), id);
      if (!stored) throw new AtelierError("not_found");
      if (stored.job.status === "active") await cancelJob(context.env, stored.job);
      return { status: 200, headers: {}, body: await shown(context, id) };
    });
    for (const [name, value] of Object.entries(answer.headers)) context.header(name, value);
    return context.json(await signed(context, answer.body), 200);
  },
);

trainingRoutes.openapi(
  createRoute({
    method: "delete",
    path: "/v1/trainings/{id}",
    summary: "Delete a training and its files",
    description: "Cancels it where it is live. Adapters that it made stay.",
    security: secured,
    request: { params: idParam("training") },
    responses: { 204: { description: "Deleted" }, ...problems },
  }),
  async context => {
    const store = storeOf(context);
    const stored = await trainingOf(store, context.req.valid("param").id);
    if (!stored) throw new AtelierError("not_found");
    if (stored.job.status === "active") await cancelJob(context.env, stored.job);
    const files = await trainingFiles(context.env.BUCKET, stored.training, "canceled");
    await store.deleteTraining(stored.training.id);
    await store.deleteJob(stored.job.id);
    await removeFiles(
      context.env,
      files.map(({ key }) => key),
    );
    return context.body(null, 204);
  },
);

// Registered by hand: a parameter with slashes in it is none that OpenAPI knows.
trainingFileRoutes.openAPIRegistry.registerPath({
  method: "get",
  path: "/v1/trainings/{id}/files/{path}",
  summary: "A file of a training",
  description: "With the key, or without it by the signed URL in the training. The entity tag is the file's SHA-256.",
  security: [...secured, {}],
  request: { params: idParam("training").extend({ path: adapterFileSchema.shape.path }), query: signedQuery },
  responses: { 200: { description: "The file", content: { "application/octet-stream": {} } }, ...problems },
});
trainingFileRoutes.get("/v1/trainings/:id/files/:path{.+}", answerFile);

async function answerFile(context: AppContext): Promise<Response> {
  const { id, path } = { id: context.req.param("id") ?? "", path: context.req.param("path") ?? "" };
  const training = await readable(context, id, path);
  const stored = await tenantStore(database(context.env), training.tenant_id).job(sameUlid(id, "job"));
  const files = stored ? await trainingFiles(context.env.BUCKET, training, stored.job.status) : [];
  const file = files.find(entry => entry.path === path);
  const object = file && (await context.env.BUCKET.get(file.key));
  if (!object) throw new AtelierError("not_found");
  const name = `${training.name}-${path.split("/").at(-1)}`;
  return new Response(object.body, {
    headers: {
      "content-type": file.media_type,
      "content-length": String(object.size),
      "content-disposition": `attachment; filename="${name}"`,
      "cache-control": "private, no-store",
      etag: `"${file.sha256}"`,
    },
  });
}

/** The training whose file this request may have. @throws AtelierError not_found, unauthorized */
async function readable(context: AppContext, id: string, path: string): Promise<TrainingRow> {
  const db = database(context.env);
  const { expires, signature } = signedQuery.parse(context.req.query());
  if (signature !== undefined && !(await isValidDownloadUrl(context.env, filePath(id, path), expires ?? 0, signature)))
    throw new AtelierError("unauthorized", "The signed URL is not valid or has expired: ask for the training again.");
  const row = await (signature !== undefined
    ? signedTraining(db, id)
    : tenantStore(db, (await authenticateContext(context)).tenant).training(id));
  if (!row) throw new AtelierError("not_found");
  return row;
}
