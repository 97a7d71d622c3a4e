import { env } from "cloudflare:workers";
import { beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type Env, settings } from "../../edge/env.ts";
import { detachJob } from "../../edge/jobs.ts";
import { jobViewSchema } from "../../shared/job.ts";
import { publicJwk, verify } from "../../shared/signing.ts";
import { newPool, TestRunner } from "./dispatcher/support.ts";
import {
  call,
  commit,
  compute,
  counted,
  generateHit,
  generateMiss,
  newKey,
  readGeneration,
  registerModel,
  waitingExecutions,
} from "./support.ts";

beforeAll(() => registerModel());

let key: string;
let tenant: string;
beforeEach(async () => {
  ({ key, tenant_id: tenant } = await newKey());
});

async function readJob(id: string) {
  const answer = await call(`/v1/jobs/${id}`, { key });
  expect(answer.status).toBe(200);
  return jobViewSchema.parse(await answer.json());
}

async function cancel(id: string) {
  const answer = await call(`/v1/jobs/${id}/cancel`, { key, method: "POST" });
  expect(answer.status).toBe(200);
  return jobViewSchema.parse(await answer.json());
}

async function executionState(id: string): Promise<string> {
  return (await env.DB.prepare("SELECT state FROM executions WHERE id = ?").bind(id).first<{ state: string }>())!.state;
}

describe("acceptance", () => {
  it("offers each new execution once, signed, until the job's deadline, without its prompt", async () => {
    const { env: watched, traffic } = counted();
    const headers = { "x-request-id": "req_01JD00000000000000000000AA" };
    const job = await generateMiss(key, { prompt: "a secret cube", seed: 1, num_images: 2, deadline: 100 }, { env: watched, headers });
    const executions = await waitingExecutions(job.id);
    const claims = await Promise.all(traffic.offers.map(offer => verify("offer", offer, [publicJwk(settings(env).OFFER_KEY)])));
    expect(claims.map(({ execution }) => execution).sort()).toEqual([...executions].sort());
    const deadline = Math.ceil(Date.parse(job.deadline_at) / 1000);
    for (const claim of claims)
      expect(claim).toMatchObject({ tenant, pool: "default", request_id: headers["x-request-id"], exp: deadline });
    expect(Date.parse(job.deadline_at) - Date.parse(job.created_at)).toBe(100_000);
    for (const offer of traffic.offers)
      expect(atob(offer.split(".")[1]!.replaceAll("-", "+").replaceAll("_", "/"))).not.toContain("secret");
    expect(new Set(traffic.objects)).toEqual(new Set([`events ${job.id}`, "dispatcher default"]));
  });

  it("stands although the queue, the events and the dispatcher fail", async () => {
    const fail = () => Promise.reject(new Error("down"));
    const broken = {
      ...env,
      OFFERS: { sendBatch: fail },
      DISPATCHER: { getByName: () => ({ watch: fail, describe: fail }) },
      JOB_EVENTS: { getByName: () => ({ append: fail, progress: fail, wait: fail }) },
    } as unknown as Env;
    const job = await generateMiss(key, { seed: 2 }, { env: broken, headers: { prefer: "wait=20" } });
    expect(job).toMatchObject({ status: "queued", no_runner: false, queue_position: null });
    await compute(job.id);
    expect((await readJob(job.id)).status).toBe("succeeded");
  });

  it("leaves nothing behind when it cannot be written", async () => {
    const first = await generateMiss(key, { seed: 3 });
    await env.DB.prepare("CREATE TRIGGER refuse BEFORE INSERT ON job_pictures BEGIN SELECT raise(ABORT, 'refused'); END").run();
    const answer = await call("/v1/generations", { method: "POST", key, json: { prompt: "another", seed: 3 } });
    await env.DB.prepare("DROP TRIGGER refuse").run();
    expect(answer.status).toBe(500);
    const { results } = await env.DB.prepare("SELECT id FROM jobs WHERE tenant_id = ?").bind(tenant).all();
    expect(results).toEqual([{ id: first.id }]);
    expect((await env.DB.prepare("SELECT count(*) AS n FROM executions WHERE tenant_id = ?").bind(tenant).first<{ n: number }>())!.n).toBe(
      1,
    );
  });
});

describe("equal requests in flight", () => {
  it("compute once, and end together with the same picture", async () => {
    const { env: watched, traffic } = counted();
    const [one, two] = await Promise.all([
      generateMiss(key, { seed: 1 }, { env: watched }),
      generateMiss(key, { seed: 1 }, { env: watched }),
    ]);
    expect(await waitingExecutions(one.id)).toEqual(await waitingExecutions(two.id));
    expect(traffic.offers).toHaveLength(1);
    await compute(one.id);
    const [first, second] = [await readGeneration(key, one.id), await readGeneration(key, two.id)];
    expect([first.status, second.status]).toEqual(["succeeded", "succeeded"]);
    expect(second.pictures[0]!.sha256).toBe(first.pictures[0]!.sha256);
    expect([first.pictures[0]!.cached, second.pictures[0]!.cached]).toEqual([false, false]);
  });

  it("share the pictures that they have in common", async () => {
    const three = await generateMiss(key, { seed: 1, num_images: 3 });
    const two = await generateMiss(key, { seed: 2, num_images: 2 });
    expect(await waitingExecutions(two.id)).toEqual((await waitingExecutions(three.id)).slice(1));
  });

  it("of two tenants compute twice", async () => {
    const mine = await generateMiss(key, { seed: 1 });
    const theirs = await generateMiss((await newKey()).key, { seed: 1 });
    expect(await waitingExecutions(theirs.id)).not.toEqual(await waitingExecutions(mine.id));
  });

  it("cancelling one leaves the other; cancelling both stops the execution", async () => {
    const [one, two] = [await generateMiss(key, { seed: 1 }), await generateMiss(key, { seed: 1 })];
    const [execution] = await waitingExecutions(one.id);
    expect(await cancel(one.id)).toMatchObject({ status: "canceled", error: null });
    expect(await executionState(execution!)).toBe("active");
    expect((await readJob(two.id)).status).toBe("queued");
    await cancel(two.id);
    expect(["abandoned", "canceled"]).toContain(await executionState(execution!));
    const anew = await generateMiss(key, { seed: 1 });
    expect(await waitingExecutions(anew.id)).not.toEqual([execution]);
  });
});

describe("the end of a job", () => {
  it("a job that has ended stays as it is when it is canceled", async () => {
    const job = await generateMiss(key, { seed: 1 });
    await compute(job.id);
    const before = await readJob(job.id);
    expect(before).toMatchObject({ status: "succeeded", progress: { step: 20, steps: 20 }, queue_position: null, no_runner: false });
    expect(await cancel(job.id)).toEqual(before);
    const hit = await generateHit(key, { seed: 1 });
    expect((await cancel(hit.job.id)).status).toBe("succeeded");
  });

  it("a commit beats a cancel: the job stays canceled, the picture is cached", async () => {
    const job = await generateMiss(key, { seed: 1 });
    const [execution] = await waitingExecutions(job.id);
    await env.DB.prepare("UPDATE jobs SET status = 'canceled' WHERE id = ?").bind(job.id).run();
    await env.DB.prepare("UPDATE job_pictures SET state = 'canceled' WHERE job_id = ?").bind(job.id).run();
    await env.DB.prepare("UPDATE executions SET state = 'abandoned' WHERE id = ?").bind(execution!).run();
    await commit(execution!);
    expect((await readGeneration(key, job.id)).pictures[0]).toMatchObject({ status: "canceled", id: null });
    expect((await generateHit(key, { seed: 1 })).pictures[0]!.cached).toBe(true);
  });

  it("a deadline detaches with its error, once", async () => {
    const job = await generateMiss(key, { seed: 1, num_images: 2 });
    const executions = await waitingExecutions(job.id);
    const error = { code: "deadline_exceeded", message: "too late" } as const;
    const first = await detachJob(env, job.id, { status: "failed", error });
    expect(first.ended).toBe(true);
    expect([...first.abandoned].sort()).toEqual([...executions].sort());
    expect(await detachJob(env, job.id, { status: "canceled", error: null })).toEqual({ ended: false, abandoned: [] });
    expect(await readGeneration(key, job.id)).toMatchObject({
      status: "failed",
      error: { code: "deadline_exceeded", detail: "too late", status: 504 },
      job: { error },
    });
  });

  it("a client that waits is answered when the job ends", async () => {
    const waiting = call("/v1/generations", {
      method: "POST",
      key,
      json: { prompt: "a red cube", seed: 5 },
      headers: { prefer: "wait=20" },
    });
    let job: string | undefined;
    while (job === undefined)
      job = (await env.DB.prepare("SELECT id FROM jobs WHERE tenant_id = ?").bind(tenant).first<{ id: string }>())?.id;
    await compute(job);
    const answer = await waiting;
    expect([answer.status, answer.headers.get("preference-applied")]).toEqual([201, "wait=20"]);
    expect(await answer.json()).toMatchObject({ object: "generation", status: "succeeded", pictures: [{ cached: false }] });
  });

  it("a client that has waited long enough gets the job", async () => {
    const answer = await call("/v1/generations", {
      method: "POST",
      key,
      json: { prompt: "a red cube" },
      headers: { prefer: "respond-async, wait=1" },
    });
    expect(answer.status).toBe(202);
    const job = jobViewSchema.parse(await answer.json());
    expect(answer.headers.get("location")).toBe(`/v1/jobs/${job.id}`);
    expect(answer.headers.get("retry-after")).toBe("1");
    expect(job).toMatchObject({ status: "queued", no_runner: true });
  });

  it("a client learns whether a runner is there that can take the job's model", async () => {
    const pool = newPool();
    const { hash } = await registerModel({ name: pool, pool });
    const job = await generateMiss(key, { model: pool });
    await TestRunner.connect(pool, { models: [`sha256:${"b".repeat(64)}`] });
    expect(await readJob(job.id)).toMatchObject({ status: "queued", no_runner: true });
    await TestRunner.connect(pool, { models: [hash] });
    expect(await readJob(job.id)).toMatchObject({ status: "queued", no_runner: false });
  });
});
