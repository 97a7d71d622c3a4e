import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, expect, test } from "vitest";
import { createMetrics } from "../../../gpu-runner/metrics.ts";
import { ComputeCanceled, ModelLoadFailed, ModelThread, type ModelThreadOptions } from "../../../gpu-runner/model-thread.ts";
import { pictureRequest } from "./edge-peer.ts";
import { scriptedWorker, silent } from "./harness.ts";

const threads: ModelThread[] = [];
afterEach(async () => {
  for (const thread of threads.splice(0)) await thread.stop();
});

function newThread(options: Partial<ModelThreadOptions> = {}) {
  const events = { stuck: 0, changes: 0 };
  const thread = new ModelThread({
    script: scriptedWorker,
    models: ["/models/scripted"],
    provider: "cpu",
    cacheDir: tmpdir(),
    log: silent,
    metrics: createMetrics(),
    watchdogMs: 400,
    loadMs: 20_000,
    onStuck: () => events.stuck++,
    onChange: () => events.changes++,
    ...options,
  });
  threads.push(thread);
  return { thread, events };
}

function run(thread: ModelThread, prompt: string, { steps = 3, deadlineMs = 60_000 } = {}) {
  const reports: number[] = [];
  const request = pictureRequest({ prompt, steps });
  return { reports, done: thread.compute({ request, deadline: Date.now() + deadlineMs, onProgress: ({ step }) => reports.push(step) }) };
}

test("computes, reports each step and counts them", async () => {
  const { thread } = newThread();
  await thread.start();
  const { reports, done } = run(thread, "steps 1");
  expect(thread.state).toBe("computing");
  await expect(run(thread, "steps 1").done).rejects.toThrow("not idle");
  expect((await done).mediaType).toBe("image/png");
  expect([reports, thread.counter, thread.state]).toEqual([[1, 2, 3], 3, "idle"]);
});

test("cancel stops between steps and leaves the thread in use", async () => {
  const { thread } = newThread();
  await thread.start();
  const { reports, done } = run(thread, "steps 30", { steps: 100 });
  setTimeout(() => thread.cancel(), 100);
  await expect(done).rejects.toThrow(ComputeCanceled);
  expect(reports.length).toBeLessThan(20);
  await run(thread, "steps 1").done;
  expect(thread.counter).toBe(reports.length + 3);
});

test.each([
  ["hang", "hung"],
  ["crash", "crashed"],
  ["exit", "crashed"],
  ["garbage", "crashed"],
])("%s: lost as retryable, and another thread computes", async (prompt, word) => {
  const { thread, events } = newThread();
  await thread.start();
  await expect(run(thread, prompt).done).rejects.toMatchObject({
    code: "runner_failed",
    retryable: true,
    message: expect.stringContaining(word),
  });
  await expect.poll(() => thread.state, { timeout: 15_000 }).toBe("idle");
  await run(thread, "steps 1").done;
  expect(events.stuck).toBe(0);
});

test("slow steps are no hang: the limit follows the slowest step", async () => {
  const { thread } = newThread({ watchdogMs: 400 });
  await thread.start();
  const slow = run(thread, "slowing 150", { steps: 4 });
  await slow.done;
  expect(slow.reports.length).toBe(4);
});

test("past the attempt's deadline a computation is given up although it takes steps, and the thread goes on", async () => {
  const metrics = createMetrics();
  const { thread } = newThread({ metrics });
  await thread.start();
  await expect(run(thread, "steps 20", { steps: 1000, deadlineMs: 300 }).done).rejects.toMatchObject({
    retryable: true,
    message: expect.stringContaining("overran"),
  });
  await expect.poll(() => thread.state, { timeout: 15_000 }).toBe("idle");
  await run(thread, "steps 1").done;
  expect((await metrics.threadRestarts.get()).values).toEqual([]);
});

test("a thread that is stuck in native code can't be ended: the owner is told", async () => {
  const { thread, events } = newThread({ terminateMs: 300 });
  await thread.start();
  await expect(run(thread, "stuck").done).rejects.toMatchObject({ retryable: true });
  await expect.poll(() => events.stuck, { timeout: 15_000 }).toBe(1);
});

test("a reported failure keeps its code and leaves the thread in use", async () => {
  const { thread } = newThread();
  await thread.start();
  await expect(run(thread, "fail").done).rejects.toMatchObject({ code: "runner_failed", message: "failed as told", retryable: false });
  expect(thread.state).toBe("idle");
});

test("a model that can't be read fails the start with its sentence", async () => {
  const { thread } = newThread({ models: ["/models/missing"] });
  await expect(thread.start()).rejects.toThrow(new ModelLoadFailed("no such model"));
});

test("loading that takes too long fails the start", async () => {
  const { thread } = newThread({ loadMs: 1 });
  await expect(thread.start()).rejects.toThrow("took longer than 1 ms");
});

test("a full disk is waited for, and the reason is told meanwhile", async () => {
  const folder = join(mkdtempSync(join(tmpdir(), "atelier-")), "full");
  writeFileSync(folder, "");
  const { thread } = newThread({ models: [folder], reload: { baseMs: 20, capMs: 50 } });
  const started = thread.start();
  await expect.poll(() => thread.problem, { timeout: 15_000 }).toBe("no space left");
  expect([thread.state, existsSync(folder)]).toEqual(["loading", true]);
  rmSync(folder);
  await started;
  expect([thread.state, thread.problem]).toEqual(["idle", undefined]);
});

test("stop ends a running computation", async () => {
  const { thread } = newThread();
  await thread.start();
  const { done } = run(thread, "hang");
  const lost = expect(done).rejects.toMatchObject({ message: "The runner was stopped." });
  expect(await thread.stop()).toBe(true);
  await lost;
  expect(thread.state).toBe("ended");
});

test("the real model: stopped in the middle of a picture without harm, and loaded again in the same process", async () => {
  const folder = fileURLToPath(new URL("../../goldens/base/models/sd15", import.meta.url));
  const cacheDir = mkdtempSync(join(tmpdir(), "atelier-"));
  const real = {
    script: new URL("../../../gpu-runner/model-worker.ts", import.meta.url),
    models: [folder],
    cacheDir,
    threads: 1,
    watchdogMs: 20_000,
  };
  const draw = (thread: ModelThread, steps: number) => {
    const request = pictureRequest({ model: thread.models[0]!.hash, width: 128, height: 128, steps });
    return thread.compute({ request, deadline: Date.now() + 60_000, onProgress: () => {} });
  };
  const { thread: first } = newThread(real);
  await first.start();
  const picture = await draw(first, 2);
  const stopped = expect(draw(first, 400)).rejects.toThrow(ComputeCanceled);
  await expect.poll(() => first.counter, { timeout: 15_000 }).toBeGreaterThan(10);
  expect(await first.stop()).toBe(true);
  await stopped;

  const { thread: second } = newThread(real);
  await second.start();
  expect((await draw(second, 2)).sha256).toBe(picture.sha256);
  rmSync(cacheDir, { recursive: true });
});
