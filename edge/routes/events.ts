import { createRoute, z } from "@hono/zod-openapi";
import { AtelierError } from "../../shared/errors.ts";
import { database } from "../database.ts";
import { terminalEvent } from "../events/ended-job.ts";
import { KEEP_EVENTS_MS } from "../events/job-events.ts";
import { endedStream, lastEventId } from "../events/stream.ts";
import { createRouter } from "../http.ts";
import { idParam, problems, secured } from "../openapi.ts";
import { tenantStore } from "../tenant.ts";

/** A job's events as they come. */
export const eventsRoutes = createRouter();

const eventsRoute = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/events",
  summary: "Events of a job",
  description:
    "Server-sent events: queued, running, progress (with a small preview now and then), picture, and last one of succeeded, failed, canceled. Send the last id as Last-Event-ID to resume. A stream ends after ten minutes at the latest.",
  security: secured,
  request: {
    params: idParam("job"),
    headers: z.object({ "last-event-id": z.string().optional().describe("number of the last event that was seen") }),
  },
  responses: {
    200: { description: "The stream", content: { "text/event-stream": { schema: z.string() } } },
    204: { description: "The end has been seen: there is nothing more to come" },
    ...problems,
  },
});

eventsRoutes.openapi(eventsRoute, async context => {
  const { id } = context.req.valid("param");
  const found = await tenantStore(database(context.env), context.get("principal").tenant).job(id);
  if (!found) throw new AtelierError("not_found");
  const seen = context.req.header("last-event-id");
  const end = terminalEvent(found.job);
  // Past their day the events are deleted, and how the job ended is what remains.
  if (end && Date.parse(end.at) + KEEP_EVENTS_MS <= Date.now()) return endedStream(end, lastEventId(seen));
  const headers = seen === undefined ? undefined : { "last-event-id": seen };
  const stream = await context.env.JOB_EVENTS.getByName(id).fetch(`https://job-events/${id}`, { headers });
  if (stream.status === 404) throw new AtelierError("not_found");
  return new Response(stream.body, stream);
});
