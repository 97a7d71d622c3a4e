import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { client, metric } from "../support/client.ts";
import { startProduct } from "../support/product.ts";

let product: Awaited<ReturnType<typeof startProduct>>;
let api: ReturnType<typeof client>;
beforeAll(async () => {
  product = await startProduct();
  api = client(product.url, product.key);
});
afterAll(() => product?.stop());

const quick = { steps: 4, model: "pocket" };
const computed = () => metric(product.runner.url, "atelier_runner_executions_total");

test("a prompt becomes a picture of the size that was asked for", async () => {
  const generation = await api.generate({ ...quick, prompt: "a red cube, on a green floor", seed: 1, width: 128, height: 128 });
  expect(generation.status).toBe("succeeded");
  const [picture] = generation.pictures;
  expect(picture).toMatchObject({ seed: 1, width: 128, height: 128, cached: false, status: "succeeded" });
  const file = await api.file(picture!);
  expect(createHash("sha256").update(file).digest("hex")).toBe(picture!.sha256);
  expect(await sharp(file).metadata()).toMatchObject({ width: 128, height: 128, format: "png" });
});

test("the same request again comes from the cache, with the same bytes, and neither queue nor runner is touched", async () => {
  const request = { ...quick, prompt: "a blue ring, on a white floor", seed: 5 };
  const first = await api.generate(request);
  const before = { computed: await computed(), pool: await product.admin.wakeDispatcher("default") };
  product.runner.signal("SIGSTOP");
  const second = await api.generate(request).finally(() => product.runner.signal("SIGCONT"));
  expect(second.id).not.toBe(first.id);
  expect(second.pictures[0]).toMatchObject({ cached: true, sha256: first.pictures[0]!.sha256, seed: 5 });
  expect(await api.file(second.pictures[0]!)).toEqual(await api.file(first.pictures[0]!));
  expect(await computed()).toBe(before.computed);
  expect(await product.admin.wakeDispatcher("default")).toMatchObject({ queued: before.pool.queued, leased: before.pool.leased });
});

test("four pictures, then one of them alone: a hit", async () => {
  const request = { ...quick, prompt: "a yellow cone, on a gray floor", seed: 100 };
  const four = await api.generate({ ...request, num_images: 4 });
  expect(four.pictures.map(({ seed, cached }) => ({ seed, cached }))).toEqual([100, 101, 102, 103].map(seed => ({ seed, cached: false })));
  expect(new Set(four.pictures.map(({ sha256 }) => sha256)).size).toBe(4);
  const one = await api.generate({ ...request, seed: 102 });
  expect(one.pictures).toMatchObject([{ cached: true, sha256: four.pictures[2]!.sha256 }]);
});

test("two equal requests in flight compute once; cancelling one leaves the other", async () => {
  const before = await computed();
  const request = { prompt: "a green pill, on a red floor", seed: 9, steps: 60 };
  const [first, second] = await Promise.all([api.submit(request), api.submit(request)]);
  expect(await api.cancel(first.job.id)).toMatchObject({ status: "canceled" });
  expect(await api.ended(second.job.id)).toMatchObject({ status: "succeeded" });
  expect(await api.job(first.job.id)).toMatchObject({ status: "canceled" });
  expect((await computed()) - before).toBe(1);
});

test("a cancelled job stops computing, and cancelling it again changes nothing", async () => {
  const { job } = await api.submit({ prompt: "a black sphere", seed: 10, steps: 150 });
  await api.until(job.id, ({ progress }) => (progress?.step ?? 0) > 0);
  expect(await api.cancel(job.id)).toMatchObject({ status: "canceled" });
  expect(await api.cancel(job.id)).toMatchObject({ status: "canceled" });
  const next = await api.generate({ ...quick, prompt: "a black sphere", seed: 11 });
  expect(next.status).toBe("succeeded");
});

test("another tenant sees no job, no picture and no cache entry", async () => {
  const request = { ...quick, prompt: "a pink gem, on a sand floor", seed: 77 };
  const mine = await api.generate(request);
  const other = client(product.url, (await product.admin.createKey({ tenant: "another", name: "test" })).key);
  for (const path of [
    `/v1/generations/${mine.id}`,
    `/v1/jobs/${mine.job.id}`,
    `/v1/jobs/${mine.job.id}/events`,
    `/v1/pictures/${mine.pictures[0]!.id}`,
  ]) {
    expect((await other.call(path)).status, path).toBe(404);
  }
  expect((await other.call(`/v1/jobs/${mine.job.id}/cancel`, { method: "POST" })).status).toBe(404);
  expect((await other.call(`/v1/generations/${mine.id}`, { method: "DELETE" })).status).toBe(404);
  expect(await (await other.call("/v1/generations")).json()).toMatchObject({ data: [] });
  expect(await (await other.post({ ...request, cache: "only" })).json()).toMatchObject({ code: "cache_miss" });
  const theirs = await other.generate(request);
  expect(theirs.pictures).toMatchObject([{ cached: false, sha256: mine.pictures[0]!.sha256 }]);
});

test("progress is streamed step by step, with a preview, and ends with the terminal event", async () => {
  const { job } = await api.submit({ prompt: "a cyan cylinder, on a brown floor at sunset", seed: 3, steps: 40 });
  const answer = await api.call(`/v1/jobs/${job.id}/events`);
  expect(answer.headers.get("content-type")).toContain("text/event-stream");
  const text = await answer.text();
  const events = Array.from(text.matchAll(/^data: (.*)$/gm), ([, data]) => JSON.parse(data!));
  const steps = events.filter(({ type }) => type === "progress").map(({ step }) => step);
  expect(steps.length).toBeGreaterThan(3);
  expect(steps).toEqual(steps.toSorted((a, b) => a - b));
  expect(events.some(({ preview }) => preview?.startsWith("data:image/"))).toBe(true);
  expect(events.at(-1)).toMatchObject({ type: "succeeded" });
});

test("no prompt and no secret stands in any log", async () => {
  await api.generate({ ...quick, prompt: "a canaryprompt cube", negative_prompt: "canarynegative", seed: 1 });
  const secrets = Object.values(product.state.secrets()).flatMap(value =>
    value.startsWith("{") ? Object.values(JSON.parse(value) as Record<string, string>).filter(part => part.length > 40) : [value],
  );
  const token = readFileSync(product.state.path("runner-token"), "utf8").trim();
  const logs = readdirSync(product.state.path("logs"), { recursive: true, encoding: "utf8" })
    .map(name => join(product.state.path("logs"), name))
    .filter(name => statSync(name).isFile())
    .map(name => readFileSync(name, "utf8"))
    .join("\n");
  expect(logs).toMatch(/req_[0-9A-Z]{26}/);
  const publicParts = [...secrets].filter(value => logs.includes(value));
  expect(publicParts).toEqual([]);
  for (const canary of ["canaryprompt", "canarynegative", product.key, token]) expect(logs.includes(canary)).toBe(false);
});
