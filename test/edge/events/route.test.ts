import { runDurableObjectAlarm } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { ulid } from "ulid";
import { describe, expect, it } from "vitest";
import { call, newKey } from "../support.ts";
import { endJob, insertJob } from "./rows.ts";
import { parseSse } from "./sse.ts";

const append = (job: string, ...events: unknown[]) => env.JOB_EVENTS.getByName(job).append({ v: 1, job, events });
const eventsOf = async (job: string, key: string | undefined, headers: Record<string, string> = {}) =>
  call(`/v1/jobs/${job}/events`, { headers, ...(key !== undefined && { key }) });

describe("GET /v1/jobs/{id}/events", () => {
  it("streams to the job's tenant, and goes on after Last-Event-ID", async () => {
    const { key, tenant_id } = await newKey(["read"]);
    const { job, execution } = await insertJob({ tenant: tenant_id });
    await append(job, { type: "queued" }, { type: "running", execution, epoch: 1 });
    const response = await eventsOf(job, key);
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    expect(response.headers.get("cache-control")).toBe("no-store");
    expect(response.headers.get("x-request-id")).toMatch(/^req_[0-9A-HJKMNP-TV-Z]{26}$/);
    const text = response.text();
    await append(job, { type: "succeeded", error: null });
    expect(parseSse(await text).events.map(({ id, event }) => [id, event])).toEqual([
      [1, "queued"],
      [2, "running"],
      [3, "succeeded"],
    ]);
    const rest = await eventsOf(job, key, { "last-event-id": "2" });
    expect(parseSse(await rest.text()).events.map(({ id }) => id)).toEqual([3]);
    expect((await eventsOf(job, key, { "last-event-id": "3" })).status).toBe(204);
  });

  it("refuses without a key, and is 404 for another tenant's job, an unknown and a malformed one", async () => {
    const { key } = await newKey();
    const { job } = await insertJob();
    const answers = await Promise.all([
      eventsOf(job, undefined),
      eventsOf(job, key),
      eventsOf(`job_${ulid()}`, key),
      eventsOf("job_x", key),
    ]);
    expect(answers.map(({ status }) => status)).toEqual([401, 404, 404, 404]);
    for (const answer of answers) expect(answer.headers.get("content-type")).toBe("application/problem+json");
    const [, foreign, unknown] = await Promise.all(answers.map(answer => answer.json<{ instance: string }>()));
    expect({ ...foreign, instance: "" }).toEqual({ ...unknown, instance: "" });
  });

  it.each([
    ["a day ago", 25 * 3_600_000],
    ["just now, its notification lost", 0],
  ])("tells the end of a job that ended %s from D1", async (_, ago) => {
    const { key, tenant_id } = await newKey();
    const { job } = await insertJob({ tenant: tenant_id });
    const error = { code: "no_runner", message: "none came" };
    const finished = Date.now() - ago;
    await endJob(job, "failed", finished, error);
    const { events } = parseSse(await (await eventsOf(job, key, { "last-event-id": "7" })).text());
    expect(events.map(({ event, data }) => [event, data])).toEqual([
      ["failed", { type: "failed", at: new Date(finished).toISOString(), error }],
    ]);
  });

  it("does not bring back an events object whose day is over", async () => {
    const { key, tenant_id } = await newKey();
    const { job } = await insertJob({ tenant: tenant_id });
    await append(job, { type: "queued" }, { type: "canceled", error: null });
    await endJob(job, "canceled", Date.now() - 25 * 3_600_000);
    expect(await runDurableObjectAlarm(env.JOB_EVENTS.getByName(job))).toBe(true);
    expect(parseSse(await (await eventsOf(job, key)).text()).events.map(({ event }) => event)).toEqual(["canceled"]);
    expect(await runDurableObjectAlarm(env.JOB_EVENTS.getByName(job))).toBe(false);
  });
});
