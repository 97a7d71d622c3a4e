import { env } from "cloudflare:workers";
import { beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Env } from "../../edge/env.ts";
import {
  call,
  compute,
  counted,
  generate,
  generateHit,
  generateMiss,
  newKey,
  readGeneration,
  registerModel,
  waitingExecutions,
} from "./support.ts";

beforeAll(() => registerModel());

let key: string;
beforeEach(async () => {
  key = (await newKey()).key;
});

/** Computes a request once. */
async function computed(request: Record<string, unknown>) {
  const job = await generateMiss(key, request);
  await compute(job.id);
  return readGeneration(key, job.id);
}

async function cacheRows(): Promise<number> {
  return (await env.DB.prepare(
    "SELECT count(*) AS n FROM cache_entries c JOIN api_keys k ON k.tenant_id = c.tenant_id WHERE k.id = (SELECT id FROM api_keys ORDER BY id DESC LIMIT 1)",
  ).first<{ n: number }>())!.n;
}

describe("cache: auto", () => {
  it("with a seed: computes once, then answers with the identical file, and touches neither queue nor Durable Objects", async () => {
    const first = await computed({ seed: 5 });
    expect(first.pictures[0]).toMatchObject({ seed: 5, cached: false, status: "succeeded" });
    const { env: watched, traffic } = counted();
    const { answer, body } = await generate(key, { seed: 5 }, { env: watched });
    expect(answer.status).toBe(201);
    expect(answer.headers.get("location")).toBe(`/v1/generations/${body.id}`);
    expect(body).toMatchObject({
      status: "succeeded",
      pictures: [{ cached: true, sha256: first.pictures[0]!.sha256, id: first.pictures[0]!.id, seed: 5 }],
    });
    expect(body.id).not.toBe(first.id);
    expect(traffic).toEqual({ d1: 4, r2: ["head"], offers: [], objects: [] });
  });

  it("without a seed: draws one, states it, and stores under it", async () => {
    const first = await computed({});
    const again = await generateMiss(key, {});
    const { seed } = first.pictures[0]!;
    expect((await readGeneration(key, again.id)).pictures[0]!.seed).not.toBe(seed);
    expect((await generateHit(key, { seed })).pictures[0]).toMatchObject({ cached: true, sha256: first.pictures[0]!.sha256 });
  });

  it("n = 4, then n = 1 at each of its seeds hits", async () => {
    const four = await computed({ seed: 0xffffffff, num_images: 4 });
    expect(four.pictures.map(({ seed }) => seed)).toEqual([0xffffffff, 0, 1, 2]);
    for (const { seed, sha256 } of four.pictures)
      expect((await generateHit(key, { seed })).pictures).toMatchObject([{ cached: true, sha256 }]);
  });

  it("computes only what is missing", async () => {
    const one = await computed({ seed: 11 });
    const { env: watched, traffic } = counted();
    const three = await generateMiss(key, { seed: 10, num_images: 3 }, { env: watched });
    expect(traffic.offers).toHaveLength(2);
    expect((await readGeneration(key, three.id)).pictures.map(({ cached, status }) => [cached, status])).toEqual([
      [false, "queued"],
      [true, "succeeded"],
      [false, "queued"],
    ]);
    await compute(three.id);
    const done = await readGeneration(key, three.id);
    expect(done.status).toBe("succeeded");
    expect(done.pictures[1]!.sha256).toBe(one.pictures[0]!.sha256);
  });

  it.each([
    ["prompt", { prompt: "a blue cube" }],
    ["negative prompt", { negative_prompt: "red" }],
    ["width", { width: 64 }],
    ["height", { height: 64 }],
    ["steps", { steps: 21 }],
    ["guidance scale", { guidance_scale: 4 }],
    ["guidance rescale", { guidance_rescale: 0 }],
    ["sampler", { sampler: "ddim" }],
    ["sampler options", { sampler_options: { schedule: "karras" } }],
    ["format", { format: "webp" }],
    ["seed", { seed: 22 }],
  ])("another %s is another picture", async (_, change) => {
    await computed({ seed: 21 });
    expect((await generate(key, { seed: 21, ...change })).answer.status).toBe(202);
  });

  it("what the model's defaults fill in is the same as what is given", async () => {
    await computed({ seed: 31 });
    await generateHit(key, {
      seed: 31,
      width: 128,
      height: 96,
      steps: 20,
      guidance_scale: 3,
      guidance_rescale: 0.5,
      sampler: "euler",
      deadline: 5,
      output: "b64",
    });
  });
});

describe("cache: reuse", () => {
  it("derives an absent seed from the request, so that repeats hit, whatever their number of pictures", async () => {
    const first = await computed({ cache: "reuse", num_images: 2 });
    const again = await generateHit(key, { cache: "reuse" });
    expect(again.pictures).toMatchObject([{ seed: first.pictures[0]!.seed, cached: true, sha256: first.pictures[0]!.sha256 }]);
    const other = await generateMiss(key, { cache: "reuse", prompt: "another" });
    expect((await readGeneration(key, other.id)).pictures[0]!.seed).not.toBe(first.pictures[0]!.seed);
  });

  it("looks up and stores under a seed that is given", async () => {
    await computed({ cache: "reuse", seed: 3 });
    await generateHit(key, { cache: "auto", seed: 3 });
  });
});

describe("cache: fresh", () => {
  it("computes anew and replaces", async () => {
    const first = await computed({ seed: 1 });
    const second = await computed({ seed: 1, cache: "fresh" });
    expect(second.pictures[0]).toMatchObject({ cached: false, seed: 1 });
    expect(second.pictures[0]!.id).not.toBe(first.pictures[0]!.id);
    expect((await generateHit(key, { seed: 1 })).pictures[0]!.id).toBe(second.pictures[0]!.id);
    expect((await readGeneration(key, first.id)).pictures[0]!.id).toBe(first.pictures[0]!.id);
  });

  it("neither joins nor is joined", async () => {
    const jobs = [
      await generateMiss(key, { seed: 1 }),
      await generateMiss(key, { seed: 1, cache: "fresh" }),
      await generateMiss(key, { seed: 1, cache: "fresh" }),
      await generateMiss(key, { seed: 1 }),
    ];
    const [plain, fresh, fresher, joining] = await Promise.all(jobs.map(({ id }) => waitingExecutions(id)));
    expect(joining).toEqual(plain);
    expect(new Set([...plain!, ...fresh!, ...fresher!]).size).toBe(3);
  });

  it("without a seed: random, stored", async () => {
    const { pictures } = await computed({ cache: "fresh" });
    await generateHit(key, { seed: pictures[0]!.seed });
  });
});

describe("cache: only", () => {
  it("hits, or is a cache_miss problem that records and computes nothing", async () => {
    const { env: watched, traffic } = counted();
    const miss = await call("/v1/generations", {
      method: "POST",
      key,
      env: watched,
      json: { prompt: "a red cube", seed: 9, cache: "only" },
    });
    expect(miss.status).toBe(404);
    expect(await miss.json()).toMatchObject({ code: "cache_miss", status: 404 });
    expect(traffic).toMatchObject({ offers: [], objects: [] });
    expect(await (await call("/v1/generations", { key })).json()).toMatchObject({ data: [] });
    await computed({ seed: 9 });
    expect((await generateHit(key, { seed: 9, cache: "only" })).pictures[0]!.cached).toBe(true);
    expect(
      (await call("/v1/generations", { method: "POST", key, json: { prompt: "a red cube", seed: 9, num_images: 2, cache: "only" } }))
        .status,
    ).toBe(404);
  });

  it("without a seed looks where reuse stores", async () => {
    const stored = await computed({ cache: "reuse" });
    expect((await generateHit(key, { cache: "only" })).pictures[0]!.sha256).toBe(stored.pictures[0]!.sha256);
  });

  it("is a miss too where the picture is deleted after it was found", async () => {
    const { id } = await computed({ seed: 6 });
    const bucket = {
      head: async (object: string) => {
        const found = await env.BUCKET.head(object);
        await call(`/v1/generations/${id}`, { method: "DELETE", key });
        return found;
      },
    };
    const late = { ...env, BUCKET: bucket } as unknown as Env;
    const answer = await call("/v1/generations", {
      method: "POST",
      key,
      env: late,
      json: { prompt: "a red cube", seed: 6, cache: "only" },
    });
    expect(answer.status).toBe(404);
    expect(await answer.json()).toMatchObject({ code: "cache_miss" });
  });

  it("does not join what is being computed", async () => {
    await generateMiss(key, { seed: 4 });
    expect((await call("/v1/generations", { method: "POST", key, json: { prompt: "a red cube", seed: 4, cache: "only" } })).status).toBe(
      404,
    );
  });
});

it("an entry whose object is gone is forgotten and computed again", async () => {
  const first = await computed({ seed: 2 });
  expect(await cacheRows()).toBe(1);
  const { r2_key } = (await env.DB.prepare("SELECT r2_key FROM pictures WHERE id = ?")
    .bind(first.pictures[0]!.id)
    .first<{ r2_key: string }>())!;
  await env.BUCKET.delete(r2_key);
  expect((await call("/v1/generations", { method: "POST", key, json: { prompt: "a red cube", seed: 2, cache: "only" } })).status).toBe(404);
  expect(await cacheRows()).toBe(0);
  const again = await computed({ seed: 2 });
  expect(again.pictures[0]!.cached).toBe(false);
  expect((await generateHit(key, { seed: 2 })).pictures[0]!.id).toBe(again.pictures[0]!.id);
});

it("a failure is not cached", async () => {
  const { settle } = await import("../../edge/settle.ts");
  const job = await generateMiss(key, { seed: 6 });
  const [execution] = await waitingExecutions(job.id);
  await settle(env, { execution: execution!, epoch: 1, outcome: "failed", error: { code: "runner_failed", message: "no memory" } });
  expect(await readGeneration(key, job.id)).toMatchObject({
    status: "failed",
    error: { code: "runner_failed", status: 500 },
    pictures: [{ status: "failed" }],
  });
  await generateMiss(key, { seed: 6 });
});

it("tells one tenant nothing of another's cache", async () => {
  const mine = await computed({ seed: 8 });
  const other = (await newKey()).key;
  const theirs = await generateMiss(other, { seed: 8 });
  expect((await readGeneration(other, theirs.id)).pictures[0]).toMatchObject({ cached: false, id: null, sha256: null });
  expect(
    (await call("/v1/generations", { method: "POST", key: other, json: { prompt: "a red cube", seed: 8, cache: "only" } })).status,
  ).toBe(404);
  await compute(theirs.id);
  expect((await readGeneration(other, theirs.id)).pictures[0]!.id).not.toBe(mine.pictures[0]!.id);
});
