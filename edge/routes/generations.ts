import { createRoute, z } from "@hono/zod-openapi";
import { AtelierError } from "../../shared/errors.ts";
import { type GenerationRequest, generationRequestSchema } from "../../shared/generation.ts";
import { type GenerationView, generationViewSchema, type JobView, jobViewSchema } from "../../shared/job.ts";
import { idSchema, sameUlid } from "../../shared/names.ts";
import { resolveAdapters } from "../adapters.ts";
import { removeFiles, withFiles, withUrls } from "../artifacts.ts";
import { requireJson } from "../body.ts";
import { lookUp } from "../cache.ts";
import { database } from "../database.ts";
import { planGeneration } from "../generation.ts";
import { type AppContext, createRouter } from "../http.ts";
import { type Answer, answerOnce } from "../idempotency.ts";
import { resolveInputs } from "../inputs.ts";
import { acceptJob, cancelJob, type StoredJob } from "../jobs.ts";
import { errorFields, log } from "../log.ts";
import { modelOf } from "../models.ts";
import { idempotencyHeader, idParam, json, jsonBody, problems, secured } from "../openapi.ts";
import { preferredWait } from "../prefer.ts";
import { moveTags } from "../prompt-tags.ts";
import { type TenantStore, tenantStore } from "../tenant.ts";
import { generationViews, jobViews } from "../views.ts";

export const generationRoutes = createRouter();

const createGeneration = createRoute({
  method: "post",
  path: "/v1/generations",
  summary: "Make pictures",
  description:
    "Answers 201 with the generation where it has ended: at once when every picture comes from the cache, or within `Prefer: wait=N` seconds (0 to 60). Otherwise, and always without that header, 202 with the job.",
  security: secured,
  middleware: requireJson,
  request: {
    headers: idempotencyHeader.extend({ prefer: z.string().optional().describe("wait=N: seconds to wait for the end, 0 to 60") }),
    body: jsonBody(generationRequestSchema),
  },
  responses: {
    201: json(generationViewSchema, "The generation, which has ended"),
    202: json(jobViewSchema, "The job, which has not ended yet"),
    ...problems,
  },
});

generationRoutes.openapi(createGeneration, async context => {
  const request = context.req.valid("json");
  const wait = preferredWait(context.req.header("prefer"));
  const answer = await answerOnce<GenerationView | JobView>(context, z.union([generationViewSchema, jobViewSchema]), async ulid =>
    answerWith(context, await waitFor(context, await accept(context, request, ulid), wait ?? 0)),
  );
  if (wait !== undefined) context.header("preference-applied", `wait=${wait}`);
  for (const [name, value] of Object.entries(answer.headers)) context.header(name, value);
  if (answer.body.object === "job") return context.json(answer.body, 202);
  const generation = await withUrls(context.env, answer.body, originOf(context));
  return context.json(request.output === "b64" ? await withFiles(context.env, storeOf(context), generation) : generation, 201);
});

function originOf(context: AppContext): string {
  return new URL(context.req.url).origin;
}

function storeOf(context: AppContext): TenantStore {
  return tenantStore(database(context.env), context.get("principal").tenant);
}

async function accept(context: AppContext, asked: GenerationRequest, ulid: string): Promise<StoredJob> {
  const { request, tags } = moveTags(asked);
  const { env } = context;
  const requestId = context.get("requestId");
  const db = database(env);
  const store = storeOf(context);
  const model = await modelOf(db, request.model, "model");
  const refiner = request.refiner ? await modelOf(db, request.refiner.model, "refiner.model") : undefined;
  const adapters = await resolveAdapters(store, request, tags);
  const named = await resolveInputs(env, store, request);
  const planned = await planGeneration(named.request, { model, refiner, adapters, inputs: named.inputs });
  const { request: resolved, pictures } = planned;
  const seedGiven = request.seed !== undefined || request.per_image.some(({ seed }) => seed !== undefined);
  await lookUp(env, store, pictures, { cache: request.cache, seedGiven, requestId });
  const createdAt = Date.now();
  return acceptJob(env, store, {
    id: sameUlid(`_${ulid}`, "job"),
    pool: model.pool,
    modelHash: model.hash,
    request: resolved,
    requestId,
    createdAt,
    deadlineAt: createdAt + resolved.deadline * 1000,
    pictures,
    exclusive: resolved.cache === "fresh",
    compute: resolved.cache !== "only",
  });
}

/** The job as it is after at most so many seconds. Where waiting fails, the client gets the job, which is accepted all the same. */
async function waitFor(context: AppContext, stored: StoredJob, seconds: number): Promise<StoredJob> {
  if (stored.job.status !== "active" || seconds === 0) return stored;
  const { id } = stored.job;
  try {
    await context.env.JOB_EVENTS.getByName(id).wait({ v: 1, job: id, timeout_ms: seconds * 1000 });
  } catch (error) {
    log("warn", "waiting for a job failed", { request_id: context.get("requestId"), job: id, ...errorFields(error) });
  }
  return (await storeOf(context).job(id)) ?? stored;
}

async function answerWith(context: AppContext, stored: StoredJob): Promise<Answer<GenerationView | JobView>> {
  if (stored.job.status === "active") {
    const [job] = await jobViews(context.env, [stored]);
    return { status: 202, headers: { location: `/v1/jobs/${job!.id}`, "retry-after": "1" }, body: job! };
  }
  const [generation] = await generationViews(context.env, [stored]);
  return { status: 201, headers: { location: `/v1/generations/${generation!.id}` }, body: generation! };
}

const MAX_PAGE = 50;
const listGenerations = createRoute({
  method: "get",
  path: "/v1/generations",
  summary: "List generations, newest first",
  security: secured,
  request: {
    query: z.strictObject({
      limit: z.coerce.number().int().min(1).max(MAX_PAGE).default(20),
      cursor: idSchema("generation").optional().describe("next_cursor of the page before"),
    }),
  },
  responses: {
    200: json(
      z.object({
        object: z.literal("list"),
        data: z.array(generationViewSchema),
        next_cursor: idSchema("generation").nullable().describe("null on the last page"),
      }),
      "A page of generations",
    ),
    ...problems,
  },
});

generationRoutes.openapi(listGenerations, async context => {
  const { limit, cursor } = context.req.valid("query");
  const found = await storeOf(context).jobs("generation", limit + 1, cursor && sameUlid(cursor, "job"));
  const page = found.slice(0, limit);
  const views = await generationViews(context.env, page);
  const data = await Promise.all(views.map(view => withUrls(context.env, view, originOf(context))));
  return context.json({ object: "list" as const, data, next_cursor: found.length > limit ? data.at(-1)!.id : null }, 200);
});

const getGeneration = createRoute({
  method: "get",
  path: "/v1/generations/{id}",
  summary: "A generation",
  security: secured,
  request: { params: idParam("generation") },
  responses: { 200: json(generationViewSchema, "The generation"), ...problems },
});

generationRoutes.openapi(getGeneration, async context => {
  const stored = await storeOf(context).job(sameUlid(context.req.valid("param").id, "job"));
  if (stored?.job.kind !== "generation") throw new AtelierError("not_found");
  const [generation] = await generationViews(context.env, [stored]);
  return context.json(await withUrls(context.env, generation!, originOf(context)), 200);
});

const deleteGeneration = createRoute({
  method: "delete",
  path: "/v1/generations/{id}",
  summary: "Delete a generation",
  description: "Cancels it where it is live, and deletes its pictures where no other generation shows them, also from the cache.",
  security: secured,
  request: { params: idParam("generation") },
  responses: { 204: { description: "Deleted" }, ...problems },
});

generationRoutes.openapi(deleteGeneration, async context => {
  const store = storeOf(context);
  const stored = await store.job(sameUlid(context.req.valid("param").id, "job"));
  if (stored?.job.kind !== "generation") throw new AtelierError("not_found");
  if (stored.job.status === "active") await cancelJob(context.env, stored.job);
  await removeFiles(context.env, await store.deleteJob(stored.job.id));
  return context.body(null, 204);
});
