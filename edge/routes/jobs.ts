import { createRoute } from "@hono/zod-openapi";
import { AtelierError } from "../../shared/errors.ts";
import { type AnyJobView, anyJobViewSchema } from "../../shared/job.ts";
import { database } from "../database.ts";
import { type AppContext, createRouter } from "../http.ts";
import { answerOnce } from "../idempotency.ts";
import { cancelJob, type StoredJob } from "../jobs.ts";
import { idempotencyHeader, idParam, json, problems, secured } from "../openapi.ts";
import { tenantStore } from "../tenant.ts";
import { anyJobView } from "../views.ts";

export const jobRoutes = createRouter();

async function jobOf(context: AppContext, id: string): Promise<StoredJob> {
  const stored = await tenantStore(database(context.env), context.get("principal").tenant).job(id);
  if (!stored) throw new AtelierError("not_found");
  return stored;
}

const getJob = createRoute({
  method: "get",
  path: "/v1/jobs/{id}",
  summary: "A job: its state, place in the queue and progress",
  security: secured,
  request: { params: idParam("job") },
  responses: { 200: json(anyJobViewSchema, "The job"), ...problems },
});

jobRoutes.openapi(getJob, async context => {
  return context.json(await anyJobView(context.env, await jobOf(context, context.req.valid("param").id)), 200);
});

const cancel = createRoute({
  method: "post",
  path: "/v1/jobs/{id}/cancel",
  summary: "Cancel a job",
  description: "A job that has ended stays as it is. What other jobs wait for goes on.",
  security: secured,
  request: { params: idParam("job"), headers: idempotencyHeader },
  responses: { 200: json(anyJobViewSchema, "The job, which has ended"), ...problems },
});

jobRoutes.openapi(cancel, async context => {
  const { id } = context.req.valid("param");
  const answer = await answerOnce<AnyJobView>(context, anyJobViewSchema, async () => {
    const stored = await jobOf(context, id);
    if (stored.job.status === "active") await cancelJob(context.env, stored.job);
    return { status: 200, headers: {}, body: await anyJobView(context.env, await jobOf(context, id)) };
  });
  for (const [name, value] of Object.entries(answer.headers)) context.header(name, value);
  return context.json(answer.body, 200);
});
