import { evictDurableObject, runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import fc from "fast-check";
import { ulid } from "ulid";
import { describe, expect, it } from "vitest";
import { MAX_EVENTS } from "../../../edge/events/event-store.ts";
import type { JobEvents } from "../../../edge/events/job-events.ts";
import { endJob, insertJob } from "./rows.ts";
import { parseSse, readUntil } from "./sse.ts";

const stubOf = (job: string) => env.JOB_EVENTS.getByName(job);
const setTimes = (job: string, times: Partial<JobEvents["times"]>) =>
  runInDurableObject(stubOf(job), (object: JobEvents) => {
    object.times = { ...object.times, ...times };
  });
const follow = (job: string, headers: Record<string, string> = {}) => stubOf(job).fetch(`https://events/${job}`, { headers });
const append = (job: string, ...events: unknown[]) => stubOf(job).append({ v: 1, job, events });
const progress = (execution: string, step: number, index = 0, preview?: string) => ({
  type: "progress",
  execution,
  index,
  step,
  steps: 1000,
  ...(preview !== undefined && { preview }),
});
const rows = (job: string) =>
  runInDurableObject(stubOf(job), (_: JobEvents, state) =>
    state.storage.sql
      .exec<{ id: number; type: string; idx: number | null; preview: string | null }>(
        "SELECT id, type, idx, preview FROM events ORDER BY id",
      )
      .toArray(),
  );

describe("append", () => {
  it("numbers events upwards and tells the latest progress of each picture", async () => {
    const { job, execution } = await insertJob();
    await append(job, { type: "queued" }, { type: "running", execution, epoch: 1 });
    await append(job, progress(execution, 1), progress(execution, 2), progress(execution, 7, 1));
    expect((await rows(job)).map(row => row.id)).toEqual([1, 2, 3, 4, 5]);
    expect(await stubOf(job).progress({ v: 1, job })).toEqual([
      { index: 0, step: 2, steps: 1000 },
      { index: 1, step: 7, steps: 1000 },
    ]);
  });

  it("keeps one of whatever happens once, and one terminal event; nothing follows it", async () => {
    const { job, execution } = await insertJob();
    const once = [{ type: "queued" }, { type: "running", execution, epoch: 1 }, { type: "picture", index: 0 }];
    await append(job, ...once);
    await append(job, ...once, { type: "succeeded", error: null }, { type: "picture", index: 1 });
    await append(job, { type: "failed", error: null }, { type: "canceled", error: null }, progress(execution, 3));
    expect((await rows(job)).map(row => row.type)).toEqual(["queued", "running", "picture", "succeeded"]);
  });

  it("refuses a malformed event whole, an unknown version, and another job's message", async () => {
    const { job, execution } = await insertJob();
    await runInDurableObject(stubOf(job), async (object: JobEvents) => {
      const events = [{ type: "queued" }, { type: "progress", execution, index: 0, steps: 4 }];
      await expect(object.append({ v: 1, job, events })).rejects.toThrow("job events: event 1: step: ");
      await expect(object.append({ v: 1, job, events: ["queued"] })).rejects.toThrow("job events: event 0: ");
      await expect(object.append({ v: 2 as 1, job, events: [] })).rejects.toThrow("version 2 is not known");
      await expect(object.append({ v: 1, job: "job_other", events: [] })).rejects.toThrow(`belongs to ${job}`);
    });
    expect(await rows(job)).toEqual([]);
  });

  it("stays within its bounds whatever comes, and never loses what happens once nor the latest progress", async () => {
    const event = fc.oneof(
      { weight: 8, arbitrary: fc.record({ kind: fc.constant("progress"), index: fc.nat(7), step: fc.nat(150) }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant("running"), index: fc.nat(7), step: fc.nat(1000) }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant("picture"), index: fc.nat(7), step: fc.nat(1) }) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(event, { minLength: MAX_EVENTS, maxLength: 2 * MAX_EVENTS, size: "max" }), async events => {
        const { job, execution } = await insertJob();
        const preview = `data:image/jpeg;base64,${"A".repeat(60_000)}`;
        const sent = events.map(({ kind, index, step }) =>
          kind === "progress"
            ? progress(execution, step, index, preview)
            : kind === "running"
              ? { type: kind, execution, epoch: step }
              : { type: kind, index },
        );
        await append(job, { type: "queued" });
        for (let start = 0; start < sent.length; start += 100) await append(job, ...sent.slice(start, start + 100));
        const kept = await rows(job);
        expect(kept.length).toBeLessThanOrEqual(MAX_EVENTS);
        expect(kept.filter(row => row.preview !== null).length).toBeLessThanOrEqual(8);
        expect(kept[0]?.type).toBe("queued");
        expect(new Set(kept.filter(row => row.type === "picture").map(row => row.idx))).toEqual(
          new Set(events.filter(({ kind }) => kind === "picture").map(({ index }) => index)),
        );
        const latest = new Map(events.filter(({ kind }) => kind === "progress").map(({ index, step }) => [index, step]));
        expect(await stubOf(job).progress({ v: 1, job })).toEqual(
          [...latest].sort(([a], [b]) => a - b).map(([index, step]) => ({ index, step, steps: 1000 })),
        );
        await append(job, { type: "succeeded", error: null });
        expect((await rows(job)).filter(row => row.preview !== null)).toEqual([]);
      }),
      { numRuns: 8 },
    );
  });
});

describe("wait", () => {
  it("resolves at the terminal event, and not before", async () => {
    const { job, execution } = await insertJob();
    let resolved = false;
    const waiting = stubOf(job)
      .wait({ v: 1, job, timeout_ms: 20_000 })
      .then(() => {
        resolved = true;
      });
    await append(job, { type: "queued" }, progress(execution, 1));
    expect(resolved).toBe(false);
    await append(job, { type: "canceled", error: null });
    await waiting;
  });

  it("survives a lost notification by asking D1", async () => {
    const { job } = await insertJob();
    await setTimes(job, { recover_ms: 20 });
    const waiting = stubOf(job).wait({ v: 1, job, timeout_ms: 20_000 });
    await endJob(job, "succeeded", 1_700_000_000_000);
    await waiting;
    expect((await rows(job)).map(row => row.type)).toEqual(["succeeded"]);
  });

  it("gives up after its time, at once for a job that nobody knows", async () => {
    const { job } = await insertJob();
    await stubOf(job).wait({ v: 1, job, timeout_ms: 30 });
    expect(await rows(job)).toEqual([]);
    const unknown = `job_${ulid()}`;
    await stubOf(unknown).wait({ v: 1, job: unknown, timeout_ms: 3_600_000 });
  });
});

describe("stream", () => {
  it("sends what was and what comes to two streams, and ends after the terminal event", async () => {
    const { job, execution } = await insertJob();
    await append(job, { type: "queued" });
    const responses = await Promise.all([follow(job), follow(job)]);
    expect(responses[0].headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    expect(responses[0].headers.get("cache-control")).toBe("no-store");
    const texts = Promise.all(responses.map(response => response.text()));
    const preview = "data:image/jpeg;base64,AAAA";
    await append(job, { type: "running", execution, epoch: 2 }, progress(execution, 5, 3, preview));
    await new Promise(resolve => setTimeout(resolve, 20));
    await append(job, { type: "picture", index: 3 }, { type: "failed", error: { code: "runner_failed", message: "out of memory" } });
    for (const text of await texts) {
      const { events, retries } = parseSse(text);
      expect(events.map(({ id, event }) => [id, event])).toEqual([
        [1, "queued"],
        [2, "running"],
        [3, "progress"],
        [4, "picture"],
        [5, "failed"],
      ]);
      expect(events[2]?.data).toMatchObject({ type: "progress", execution, index: 3, step: 5, steps: 1000, preview });
      expect(events[4]?.data).toMatchObject({ type: "failed", error: { code: "runner_failed", message: "out of memory" } });
      expect(retries).toEqual([2000]);
    }
  });

  it("hands a long backlog over in order, page by page", async () => {
    const { job, execution } = await insertJob();
    await append(job, ...Array.from({ length: 333 }, (_, step) => progress(execution, step)), { type: "succeeded", error: null });
    const { events } = parseSse(await (await follow(job)).text());
    expect(events.map(({ id }) => id)).toEqual(Array.from({ length: 334 }, (_, index) => index + 1));
  });

  it.each([
    ["2", [3, 4]],
    ["0", [1, 2, 3, 4]],
    ["nonsense", [1, 2, 3, 4]],
    ["-1", [1, 2, 3, 4]],
    ["99", [1, 2, 3, 4]],
  ])("resumes after Last-Event-ID %s", async (id, expected) => {
    const { job, execution } = await insertJob();
    await append(job, { type: "queued" }, progress(execution, 1), progress(execution, 2), { type: "canceled", error: null });
    const response = await follow(job, { "last-event-id": id });
    expect(parseSse(await response.text()).events.map(event => event.id)).toEqual(expected);
  });

  it("answers 204 to a client that has seen the end, and 404 for a job that nobody knows", async () => {
    const { job } = await insertJob();
    await append(job, { type: "queued" }, { type: "canceled", error: null });
    expect((await follow(job, { "last-event-id": "2" })).status).toBe(204);
    expect((await follow(`job_${ulid()}`)).status).toBe(404);
  });

  it("comments in silence, and finds a lost end in D1 while it does", async () => {
    const { job } = await insertJob();
    await setTimes(job, { comment_ms: 20 });
    const response = await follow(job);
    const reader = response.body!.getReader();
    const text = await readUntil(reader, so => so.includes(": keep-alive"));
    expect(parseSse(text).events).toEqual([]);
    await endJob(job, "failed", 1_700_000_000_000, { code: "no_runner", message: "none came" });
    const rest = await readUntil(reader, () => false);
    expect(parseSse(rest).events).toEqual([
      {
        id: 1,
        event: "failed",
        data: { type: "failed", at: "2023-11-14T22:13:20.000Z", error: { code: "no_runner", message: "none came" } },
      },
    ]);
  });

  it("ends when its time is over, with a retry hint and without a terminal event", async () => {
    const { job } = await insertJob();
    await append(job, { type: "queued" });
    await setTimes(job, { stream_ms: 60, comment_ms: 25, retry_ms: 1234 });
    const { events, comments, retries } = parseSse(await (await follow(job)).text());
    expect(events.map(({ event }) => event)).toEqual(["queued"]);
    expect(comments.length).toBeGreaterThanOrEqual(1);
    expect(retries).toEqual([1234, 1234]);
  });

  it("goes on after a restart of the object where its numbers were", async () => {
    const { job, execution } = await insertJob();
    await append(job, { type: "queued" }, progress(execution, 1));
    await evictDurableObject(stubOf(job));
    await append(job, { type: "queued" }, progress(execution, 2), { type: "succeeded", error: null });
    const { events } = parseSse(await (await follow(job, { "last-event-id": "1" })).text());
    expect(events.map(({ event }) => event)).toEqual(["progress", "progress", "succeeded"]);
    expect(events[0]?.id).toBe(2);
    expect(events.map(({ id }) => id)).toEqual(events.map(({ id }) => id).toSorted((a, b) => a - b));
  });

  it("stops when the client is gone", async () => {
    const { job } = await insertJob();
    await setTimes(job, { comment_ms: 20 });
    const response = await follow(job);
    const reader = response.body!.getReader();
    await readUntil(reader, text => text.includes("retry"));
    await reader.cancel();
    const reads = () => runInDurableObject(stubOf(job), (object: JobEvents) => object.following);
    await expect.poll(reads, { timeout: 2_000 }).toBe(0);
  });
});

describe("deletion", () => {
  const alarmAt = (job: string) => runInDurableObject(stubOf(job), (_: JobEvents, state) => state.storage.getAlarm());

  it("is due a day after the end, and leaves nothing", async () => {
    const { job } = await insertJob();
    const before = Date.now();
    await append(job, { type: "queued" }, { type: "succeeded", error: null });
    expect(((await alarmAt(job)) ?? 0) - before).toBeGreaterThanOrEqual(24 * 3_600_000);
    expect(((await alarmAt(job)) ?? 0) - before).toBeLessThan(24 * 3_600_000 + 20_000);
    expect(await runDurableObjectAlarm(stubOf(job))).toBe(true);
    const left = await runInDurableObject(stubOf(job), (_: JobEvents, state) =>
      state.storage.sql.exec("SELECT name FROM sqlite_master WHERE name = 'events'").toArray(),
    );
    expect(left).toEqual([]);
    expect(await alarmAt(job)).toBe(null);
  });

  it("waits for a job that still runs, but not for one that ended unnoticed", async () => {
    const { job } = await insertJob();
    await append(job, { type: "queued" });
    await runDurableObjectAlarm(stubOf(job));
    expect((await rows(job)).map(row => row.type)).toEqual(["queued"]);
    expect(await alarmAt(job)).not.toBe(null);
    await endJob(job, "canceled", Date.now());
    await runDurableObjectAlarm(stubOf(job));
    expect(await alarmAt(job)).toBe(null);
  });

  it("leaves an object that works when it is asked again", async () => {
    const { job } = await insertJob({ status: "succeeded", finished_at: 1_700_000_000_000 });
    await append(job, { type: "succeeded", error: null });
    await runDurableObjectAlarm(stubOf(job));
    const { events } = parseSse(await (await follow(job)).text());
    expect(events.map(({ event }) => event)).toEqual(["succeeded"]);
  });
});
