import { readFileSync } from "node:fs";
import { createConnection, createServer, type Socket } from "node:net";
import { afterEach, expect, test } from "vitest";
import { freePort } from "../../scripts/local/processes.ts";
import { type Runner, startRunner } from "../../scripts/local/runner.ts";
import { client, metric } from "../support/client.ts";
import { pocket, quickTimes, startEdgeOnly } from "../support/product.ts";

/** Everything a test started, ended in reverse order. */
const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function edge(options: Parameters<typeof startEdgeOnly>[0] = {}) {
  const started = await startEdgeOnly({ vars: quickTimes, ...options });
  cleanups.push(() => started.stop());
  return { ...started, api: client(started.url, started.key) };
}
type StartedEdge = Awaited<ReturnType<typeof edge>>;

async function runner({ state, token, url }: StartedEdge, name: string, env: Record<string, string> = {}, edgeUrl = url): Promise<Runner> {
  const started = await startRunner(state, { edgeUrl, token, models: [pocket], name, env });
  cleanups.push(() => started.stop(500));
  return started;
}

const long = { prompt: "a red cube, on a green floor", steps: 150 };

test("a runner is killed in the middle of a job: a second one finishes it", async () => {
  const running = await edge();
  const first = await runner(running, "first");
  const { id, job } = await running.api.submit({ ...long, seed: 1 });
  await running.api.until(job.id, ({ progress }) => (progress?.step ?? 0) >= 2);
  first.signal("SIGKILL");
  await runner(running, "second");
  expect(await running.api.ended(job.id)).toMatchObject({ status: "succeeded" });
  const [picture] = (await running.api.generation(id)).pictures;
  expect((await running.api.file(picture!)).length).toBe(picture!.bytes);
});

test("a runner is killed with a batch of four leased: its members are computed alone by a second one", async () => {
  const running = await edge();
  const first = await runner(running, "first");
  const { id, job } = await running.api.submit({ ...long, steps: 60, num_images: 4, seed: 21 });
  const log = (name: string) => readFileSync(running.state.path(`logs/${name}.log`), "utf8");
  await expect.poll(() => log("first"), { timeout: 30_000 }).toMatch(/"batch":4\b/);
  await running.api.until(job.id, ({ progress }) => (progress?.step ?? 0) >= 2);
  first.signal("SIGKILL");
  const second = await runner(running, "second");
  expect(await running.api.ended(job.id, 120_000)).toMatchObject({ status: "succeeded" });
  const { pictures } = await running.api.generation(id);
  expect(new Set(pictures.map(({ sha256 }) => sha256)).size).toBe(4);
  expect(await metric(second.url, "atelier_runner_executions_total", 'outcome="committed"')).toBe(4);
  expect(log("second")).not.toMatch(/"batch":[2-9]/);
});

test("a runner that comes back after its lease was given away is refused: exactly one result", async () => {
  const running = await edge();
  const first = await runner(running, "first");
  const { id, job } = await running.api.submit({ ...long, seed: 2 });
  await running.api.until(job.id, ({ progress }) => (progress?.step ?? 0) >= 2);
  first.signal("SIGSTOP");
  await runner(running, "second");
  expect(await running.api.ended(job.id)).toMatchObject({ status: "succeeded" });
  const before = await running.api.generation(id);
  first.signal("SIGCONT");
  await expect
    .poll(() => readFileSync(running.state.path("logs/first.log"), "utf8"), { timeout: 20_000, interval: 200 })
    .toMatch(/abandon|stale_epoch|refused|canceled/);
  expect((await running.api.generation(id)).pictures).toMatchObject([{ sha256: before.pictures[0]!.sha256, id: before.pictures[0]!.id }]);
  expect(await metric(first.url, "atelier_runner_executions_total", 'outcome="committed"')).toBe(0);
});

test("a computation that makes no step within the stall time is taken away; after the last attempt the job fails", async () => {
  const running = await edge({ vars: { ...quickTimes, STALL_MS: "150", MAX_ATTEMPTS: "2" } });
  await runner(running, "slow");
  const { job } = await running.api.submit({ prompt: "a red cube", seed: 3, width: 512, height: 512, steps: 20 });
  expect(await running.api.ended(job.id)).toMatchObject({ status: "failed", error: { code: "attempts_exhausted" } });
});

test("a socket that is cut and comes back within the lease costs nothing", async () => {
  const running = await edge({ vars: { ...quickTimes, LEASE_MS: "8000" } });
  const proxy = await cuttableProxy(Number(new URL(running.url).port));
  cleanups.push(proxy.close);
  await runner(running, "cut", {}, proxy.url);
  const { job } = await running.api.submit({ ...long, seed: 4 });
  await running.api.until(job.id, ({ progress }) => (progress?.step ?? 0) >= 2);
  expect(proxy.cut()).toBeGreaterThan(0);
  expect(await running.api.ended(job.id)).toMatchObject({ status: "succeeded" });
  const text = await (await running.api.call(`/v1/jobs/${job.id}/events`)).text();
  expect(Array.from(text.matchAll(/"epoch":(\d+)/g), ([, epoch]) => epoch)).toEqual(["1"]);
});

test("the Worker is killed with executions leased and queued, and restarted: all of them end well", async () => {
  const running = await edge();
  await runner(running, "steady");
  const jobs = await Promise.all([11, 12, 13].map(seed => running.api.submit({ ...long, steps: 40, seed })));
  await running.api.until(jobs[0]!.job.id, ({ status }) => status === "running");
  running.edge.signal("SIGKILL");
  await running.edge.ended;
  const again = await edge({ state: running.state, port: Number(new URL(running.url).port) });
  for (const { job } of jobs) expect(await again.api.ended(job.id, 90_000)).toMatchObject({ status: "succeeded" });
});

test("no runner until the deadline: the client sees that nobody is there, then a final state", async () => {
  const { api } = await edge();
  const { job } = await api.submit({ ...long, seed: 5, deadline: 4 });
  expect(await api.until(job.id, ({ no_runner }) => no_runner)).toMatchObject({ status: "queued", queue_position: 0 });
  expect(await api.ended(job.id, 15_000)).toMatchObject({ status: "failed", error: { code: "no_runner" } });
});

test("a draining runner hands its work over or finishes it, and ends with code 0", async () => {
  const running = await edge();
  const first = await runner(running, "draining", { ATELIER_DRAIN_MS: "300" });
  const { job } = await running.api.submit({ ...long, seed: 6 });
  await running.api.until(job.id, ({ progress }) => (progress?.step ?? 0) >= 1);
  process.kill(first.pid, "SIGTERM");
  expect(await first.ended).toBe(0);
  await runner(running, "next");
  expect(await running.api.ended(job.id)).toMatchObject({ status: "succeeded" });
});

test("a revoked runner token ends the connection", async () => {
  const running = await edge();
  const started = await runner(running, "revoked");
  const [id] = running.token.split(".");
  await running.admin.revokeRunnerToken(id!);
  await expect.poll(async () => (await fetch(`${started.url}/readyz`)).status, { timeout: 15_000 }).toBe(503);
});

/** A TCP proxy whose connections can be cut. */
async function cuttableProxy(target: number) {
  const sockets = new Set<Socket>();
  const port = await freePort();
  const server = createServer(inner => {
    const outer = createConnection(target, "127.0.0.1");
    for (const socket of [inner, outer]) {
      sockets.add(socket);
      socket.on("error", () => socket.destroy()).once("close", () => sockets.delete(socket));
    }
    inner.pipe(outer).pipe(inner);
  });
  await new Promise<void>(resolve => server.listen(port, "127.0.0.1", resolve));
  const cut = () => {
    const count = sockets.size;
    for (const socket of sockets) socket.destroy();
    return count;
  };
  const close = () => {
    cut();
    return new Promise<void>(resolve => server.close(() => resolve()));
  };
  return { url: `http://127.0.0.1:${port}`, cut, close };
}
