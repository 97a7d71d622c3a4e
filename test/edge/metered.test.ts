import { createExecutionContext, waitOnExecutionContext } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import worker from "../../edge/metered.ts";
import { compute, newKey, registerModel, waitingExecutions } from "./support.ts";

const callsSchema = z.strictObject({ d1: z.int(), d1_statements: z.int(), r2: z.int(), queue: z.int(), durable_objects: z.int() });

async function request(path: string, init?: RequestInit): Promise<unknown> {
  const context = createExecutionContext();
  const answer = await worker.fetch(new Request(`https://atelier.test${path}`, init) as Parameters<typeof worker.fetch>[0], env, context);
  await waitOnExecutionContext(context);
  return answer.json();
}

/** The calls that a request makes, beside its answer. */
async function callsOf(path: string, init?: RequestInit) {
  const before = callsSchema.parse(await request("/bench/calls"));
  const answer = await request(path, init);
  const after = callsSchema.parse(await request("/bench/calls"));
  const calls = Object.fromEntries(Object.entries(after).map(([kind, count]) => [kind, count - before[kind as keyof typeof before]]));
  return { answer, calls: callsSchema.parse(calls) };
}

describe("the metered Worker", () => {
  it("counts nothing of what touches nothing", async () => {
    const { calls } = await callsOf("/healthz");
    expect(calls).toEqual({ d1: 0, d1_statements: 0, r2: 0, queue: 0, durable_objects: 0 });
  });

  it("counts a miss's offer and objects, and a hit's calls without them", async () => {
    await registerModel();
    const { key } = await newKey();
    const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
    const init = { method: "POST", headers, body: JSON.stringify({ prompt: "a red cube", seed: 7 }) };

    const miss = await callsOf("/v1/generations", init);
    const job = z.object({ id: z.string(), status: z.literal("queued") }).parse(miss.answer);
    expect(miss.calls).toMatchObject({ queue: 1, r2: 0 });
    expect(miss.calls.durable_objects).toBeGreaterThan(0);

    expect(await waitingExecutions(job.id)).toHaveLength(1);
    await compute(job.id);
    const hit = await callsOf("/v1/generations", init);
    expect(hit.answer).toMatchObject({ status: "succeeded", pictures: [{ cached: true }] });
    // One look whether the object is there; a batch is one call of several statements.
    expect(hit.calls).toMatchObject({ queue: 0, durable_objects: 0, r2: 1 });
    expect(hit.calls.d1).toBeGreaterThan(0);
    expect(hit.calls.d1_statements).toBeGreaterThan(hit.calls.d1);
  });
});
