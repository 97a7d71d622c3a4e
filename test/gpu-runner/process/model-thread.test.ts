import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { ComputeCanceled, ModelLoadFailed } from "../../../gpu-runner/compute-errors.ts";
import { createMetrics } from "../../../gpu-runner/metrics.ts";
import { ModelThread, type ModelThreadOptions } from "../../../gpu-runner/model-thread.ts";
import { trainingRequest } from "../train/quadratic.ts";
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
    registered: [],
    memoryBudget: 1e9,
    cacheBudget: 1e9,
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

const inputs = { files: {}, adapters: {} };

function run(thread: ModelThread, prompt: string, { steps = 3, deadlineMs = 60_000 } = {}) {
  const [first] = runAll(thread, [prompt], { steps, deadlineMs });
  return first!;
}

function runAll(thread: ModelThread, prompts: string[], { steps = 3, deadlineMs = 60_000 } = {}) {
  const items = prompts.map(prompt => {
    const reports: number[] = [];
    return {
      reports,
      request: pictureRequest({ prompt, steps }),
      inputs,
      onProgress: ({ step }: { step: number }) => void reports.push(step),
    };
  });
  const pictures = thread.compute(items, Date.now() + deadlineMs);
  return items.map(({ reports }, item) => ({ reports, done: pictures[item]! }));
}

function idle(thread: ModelThread): Promise<unknown> {
  return expect.poll(() => thread.state, { timeout: 15_000 }).toBe("idle");
}

test("computes, reports each step and counts them", async () => {
  const { thread } = newThread();
  await thread.start();
  const { reports, done } = run(thread, "steps 1");
  expect(thread.state).toBe("computing");
  await expect(run(thread, "steps 1").done).rejects.toThrow("not idle");
  expect((await done).mediaType).toBe("image/png");
  await idle(thread);
  expect([reports, thread.counter]).toEqual([[1, 2, 3], 3]);
});

test("cancel stops between steps and leaves the thread in use", async () => {
  const { thread } = newThread();
  await thread.start();
  const { reports, done } = run(thread, "steps 30", { steps: 100 });
  setTimeout(() => thread.cancel(), 100);
  await expect(done).rejects.toThrow(ComputeCanceled);
  expect(reports.length).toBeLessThan(20);
  await idle(thread);
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
  await idle(thread);
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

test("a batch: each item has its own end, a bad one fails alone, a canceled one is dropped", async () => {
  const { thread } = newThread();
  await thread.start();
  const items = runAll(thread, ["steps 5", "fail", "steps 30", "steps 5"], { steps: 10 });
  const ends = Promise.allSettled(items.map(({ done }) => done));
  thread.cancel(2);
  const [first, bad, canceled, last] = await ends;
  expect([first?.status, last?.status]).toEqual(["fulfilled", "fulfilled"]);
  expect(bad).toMatchObject({ reason: { message: "failed as told" } });
  expect(canceled).toMatchObject({ reason: expect.any(ComputeCanceled) });
  expect(items.map(({ reports }) => reports.length)).toEqual([10, 0, 0, 10]);
  await idle(thread);
  await run(thread, "steps 1").done;
  expect(thread.resident).toEqual([pictureRequest().model]);
});

test("a batch whose thread is lost: what has ended stays, the rest fails as retryable", async () => {
  const { thread } = newThread();
  await thread.start();
  const ends = await Promise.allSettled(runAll(thread, ["steps 1", "crash", "steps 1"]).map(({ done }) => done));
  expect(ends.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "rejected"]);
  expect(ends[2]).toMatchObject({ reason: { code: "runner_failed", retryable: true } });
});

test("loading a model is no hang, and counts as a sign of life", async () => {
  const { thread } = newThread({ watchdogMs: 400 });
  await thread.start();
  const { done } = run(thread, "load 1500");
  await done;
  expect(thread.counter).toBeGreaterThan(3 + 3);
});

test("loading that takes longer than it may is a hang", async () => {
  const { thread } = newThread({ watchdogMs: 400, loadMs: 800 });
  await thread.start();
  await expect(run(thread, "load 20000").done).rejects.toMatchObject({ message: expect.stringContaining("hung") });
});

describe("between the steps of a training", () => {
  async function newTraining() {
    const { thread } = newThread();
    await thread.start();
    const task = { request: trainingRequest, inputs, folder: tmpdir(), resumeFrom: null, deadline: Date.now() + 60_000 };
    let steps = 0;
    const ended = thread.train(task, { onEvent: ({ type }) => void (type === "step" && steps++), onCheckpoint: () => {} }, task.deadline);
    void ended.catch(() => {});
    return { thread, ended, steps: () => steps };
  }

  test("one batch is taken at a time, once the sessions are open, and the training goes on", async () => {
    const { thread, ended, steps } = await newTraining();
    await expect(run(thread, "steps 1").done).rejects.toThrow("not idle");
    await expect.poll(() => thread.isBetweenSteps).toBe(true);
    const { done } = run(thread, "steps 20");
    expect(thread.isBetweenSteps).toBe(false);
    await expect(run(thread, "steps 1").done).rejects.toThrow("not idle");
    expect((await done).mediaType).toBe("image/png");
    await expect.poll(() => thread.isBetweenSteps).toBe(true);
    const before = steps();
    await expect.poll(steps).toBeGreaterThan(before);
    thread.cancelTraining();
    await expect(ended).rejects.toThrow(ComputeCanceled);
    await idle(thread);
  });

  test("a batch past its deadline is given up alone, and canceling the training leaves a batch", async () => {
    const { thread, ended } = await newTraining();
    await expect.poll(() => thread.isBetweenSteps).toBe(true);
    await expect(run(thread, "steps 30", { steps: 1000, deadlineMs: 100 }).done).rejects.toThrow("overran");
    await expect.poll(() => thread.isBetweenSteps).toBe(true);
    const { done } = run(thread, "steps 30", { steps: 10 });
    thread.cancelTraining();
    await expect(ended).rejects.toThrow(ComputeCanceled);
    expect((await done).mediaType).toBe("image/png");
    await idle(thread);
  });

  test("a hang is the loss of both", async () => {
    const { thread, ended } = await newTraining();
    await expect.poll(() => thread.isBetweenSteps).toBe(true);
    const { done } = run(thread, "hang");
    await expect(done).rejects.toMatchObject({ retryable: true });
    await expect(ended).rejects.toMatchObject({ retryable: true });
    await idle(thread);
  });
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
    return thread.compute([{ request, inputs, onProgress: () => {} }], Date.now() + 60_000)[0]!;
  };
  const { thread: first } = newThread(real);
  await first.start();
  const picture = await draw(first, 2);
  await idle(first);
  const stopped = expect(draw(first, 400)).rejects.toThrow(ComputeCanceled);
  await expect.poll(() => first.counter, { timeout: 15_000 }).toBeGreaterThan(10);
  expect(await first.stop()).toBe(true);
  await stopped;

  const { thread: second } = newThread(real);
  await second.start();
  expect((await draw(second, 2)).sha256).toBe(picture.sha256);
  rmSync(cacheDir, { recursive: true });
});
