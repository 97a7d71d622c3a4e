/** Trainings of the embedded model in real model threads. */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Runner } from "../../../gpu-runner/runner.ts";
import { hashModel, openModel } from "../../../gpu-runner/weights/model-source.ts";
import { checkpointKey, trainingProgressSchema } from "../../../shared/protocol.ts";
import type { TrainingEvent, TrainingResult } from "../../../shared/training.ts";
import { trainingRequest } from "../train/quadratic.ts";
import { EdgePeer, newExecution, pictureRequest, type Upload } from "./edge-peer.ts";
import { runnerFor } from "./harness.ts";

const pocket = fileURLToPath(new URL("../../../models/pocket", import.meta.url));
const realWorker = new URL("../../../gpu-runner/model-worker.ts", import.meta.url);
const cacheDir = mkdtempSync(join(tmpdir(), "atelier-training-"));
let peer: EdgePeer;
const runners: Runner[] = [];
beforeEach(async () => {
  peer = await EdgePeer.start();
});
afterEach(async () => {
  for (const runner of runners.splice(0)) await runner.drain(0);
  await peer.close();
  rmSync(cacheDir, { recursive: true, force: true });
});

async function newRunner(environment: Record<string, string> = {}): Promise<Runner> {
  const { runner } = runnerFor(
    peer,
    { ATELIER_MODELS: pocket, ATELIER_CACHE_DIR: cacheDir, ATELIER_CHECKPOINT_MS: "0", ...environment },
    realWorker,
  );
  runners.push(runner);
  await runner.start();
  await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a runner that takes work");
  return runner;
}

/** A LoRA of the pocket model on one picture, as a grant has it. */
async function training(steps: number) {
  const png = await sharp({ create: { width: 64, height: 64, channels: 3, background: "#c04020" } })
    .png()
    .toBuffer();
  const sha256 = createHash("sha256").update(png).digest("hex");
  const key = `datasets/ten/${sha256}`;
  peer.objects.set(key, png);
  const { hash } = await hashModel(openModel(pocket));
  const items = trainingRequest.items.map(item => ({ ...item, sha256 }));
  return {
    request: { ...trainingRequest, model: hash, items, steps, checkpoint_every: 1, accumulation: 1 },
    inputs: [{ sha256, bytes: png.length, key, capability: `read.${key}` }],
  };
}

const isCheckpoint = ({ path }: Pick<Upload, "path">) => path.includes("/checkpoints/");
const finished = () =>
  peer
    .until(() => peer.of("complete").at(-1), "a result", 50_000)
    .then(({ result }) => {
      if (!("kind" in result)) throw new Error("expected a training's result");
      return result;
    });
const weights = ({ files }: TrainingResult) => files.filter(({ path }) => path.endsWith(".safetensors")).map(({ sha256 }) => sha256);
/** Steps that a checkpoint has done. */
const stepOf = (body: Buffer) => Number(/\\"step\\":(\d+)/.exec(body.toString("latin1"))?.[1]);
const steps = () =>
  peer.progress
    .flatMap(({ body }) => trainingProgressSchema.parse(body).events)
    .filter((event): event is Extract<TrainingEvent, { type: "step" }> => event.type === "step")
    .map(({ step }) => step);

test("a drained runner hands its training back with a checkpoint, and another ends it with the same bytes as one that was left alone", async () => {
  await newRunner();
  const asked = await training(6);
  const [alone, execution] = [newExecution(), newExecution()];
  let refusals = 0;
  // The first files meet an edge in trouble.
  peer.uploadStatus = path => (path.includes("/staging/") && refusals++ < 2 ? 503 : 201);
  await peer.grant([{ ...asked, execution: alone, epoch: 1 }]);
  const whole = await finished();
  expect(whole).toMatchObject({ kind: "training", report: { steps: 6, ended_by: "steps" } });
  expect(refusals).toBeGreaterThan(2);
  const staged = peer.uploads.filter(upload => !isCheckpoint(upload)).map(({ body }) => createHash("sha256").update(body).digest("hex"));
  expect(staged).toEqual(expect.arrayContaining(whole.files.map(({ sha256 }) => sha256)));
  expect(steps().at(-1)).toBe(6);

  const ofIt = () => peer.uploads.filter(({ path }) => path.endsWith(checkpointKey(execution, 1)));
  await peer.grant([{ ...asked, execution, epoch: 1 }]);
  await peer.until(() => ofIt().length > 0, "a checkpoint", 30_000);
  await runners.pop()!.drain(60_000);
  expect(peer.of("release").at(-1)?.leases).toEqual([{ execution, epoch: 1 }]);
  expect(peer.of("complete")).toHaveLength(1);

  peer.objects.set(checkpointKey(execution), ofIt().at(-1)!.body);
  peer.messages.length = peer.progress.length = 0;
  await newRunner();
  await peer.grant([{ ...asked, execution, epoch: 2 }]);
  const resumed = await finished();
  expect(weights(resumed)).toEqual(weights(whole));
  expect(resumed.report.losses).toEqual(whole.report.losses);
  // It did not begin anew.
  const next = peer.uploads.find(({ path }) => path.endsWith(checkpointKey(execution, 2)));
  expect(stepOf(next!.body)).toBe(stepOf(ofIt().at(-1)!.body) + 1);
});

test("pictures are made between a training's steps, which ends with the bytes that it has without them", async () => {
  await newRunner();
  const asked = await training(60);
  const { model } = asked.request;
  const isReady = () => peer.of("ready").at(-1)?.n === 1;
  const take = async (name: string, between: () => Promise<void>) => {
    const execution = newExecution();
    peer.progress.length = 0;
    await peer.grant([{ ...asked, execution, epoch: 1 }]);
    await between();
    const complete = await peer.until(() => peer.of("complete").find(message => message.execution === execution), name, 50_000);
    if (!("kind" in complete.result)) throw new Error("expected a training's result");
    await peer.until(isReady, "a free runner");
    return complete.result;
  };
  const alone = await take("a training alone", async () => {});
  const pictures: string[] = [];
  const accompanied = await take("a training beside pictures", async () => {
    await peer.until(() => steps().length > 0 && isReady(), "credit during the training", 30_000);
    for (const seed of [1, 2]) {
      const execution = newExecution();
      await peer.grant([{ execution, epoch: 1, request: pictureRequest({ model, seed, width: 64, height: 64, steps: 2 }) }]);
      const ended = () => peer.of("complete").findIndex(message => message.execution === execution);
      await peer.until(() => ended() >= 0, "a picture", 30_000);
      pictures.push(execution);
      // Both leases show signs of life, and the training has not ended.
      await peer.until(isReady, "credit for the next", 30_000);
    }
  });
  expect(
    pictures.every(execution => peer.of("complete").findIndex(message => message.execution === execution) < peer.of("complete").length - 1),
  ).toBe(true);
  expect(accompanied.report.losses).toEqual(alone.report.losses);
  expect(weights(accompanied)).toEqual(weights(alone));
  expect(peer.of("fail")).toEqual([]);
});

test("a training can be canceled while pictures are made between its steps, and a drained runner ends the picture first", async () => {
  const runner = await newRunner();
  const asked = await training(10_000);
  const [lease, picture] = [newExecution(), newExecution()].map(execution => ({ execution, epoch: 1 }));
  await peer.grant([{ ...asked, ...lease! }]);
  await peer.until(() => steps().length > 0 && peer.of("ready").at(-1)?.n === 1, "credit during the training", 30_000);
  const request = pictureRequest({ model: asked.request.model, width: 64, height: 64, steps: 4 });
  await peer.grant([{ ...picture!, request }]);
  await peer.until(() => peer.of("accept").some(({ leases }) => leases[0]?.execution === picture!.execution), "the picture's acceptance");
  const released = runner.drain(30_000);
  const complete = await peer.until(() => peer.of("complete")[0], "the picture", 30_000);
  expect(complete.execution).toBe(picture!.execution);
  expect(await released).toBe(true);
  expect(peer.of("release").at(-1)?.leases).toEqual([lease]);
  expect(peer.uploads.some(isCheckpoint)).toBe(true);
});

test("a disk that fills up amid a training: its attempt fails as one to be tried again, and goes on from the last whole checkpoint", async context => {
  const folder = join(cacheDir, "trainings");
  mkdirSync(folder, { recursive: true });
  if (!mountTmpfs(folder)) return context.skip("a small tmpfs needs root");
  const asked = await training(100);
  const execution = newExecution();
  const checkpoints = () => peer.uploads.filter(isCheckpoint);
  try {
    await newRunner();
    await peer.grant([{ ...asked, execution, epoch: 1 }]);
    await peer.until(() => checkpoints().length > 0, "a checkpoint", 30_000);
    fill(join(folder, "ballast"));
    const fail = await peer.until(() => peer.of("fail")[0], "a failure", 30_000);
    expect(fail).toMatchObject({ execution, code: "runner_failed", message: "The runner's disk is full.", retryable: true });
    // It takes other work, and the thread is the same.
    await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a free runner");
  } finally {
    execFileSync("umount", ["-l", folder]);
  }
  const last = checkpoints().at(-1)!;
  expect(createHash("sha256").update(last.body).digest("hex")).toBe(last.sha256);
  peer.objects.set(checkpointKey(execution), last.body);
  peer.progress.length = 0;
  await peer.grant([{ ...asked, execution, epoch: 2 }]);
  await peer.until(() => steps().length > 0, "a step", 30_000);
  expect(steps()[0]).toBeGreaterThan(stepOf(last.body));
});

function mountTmpfs(at: string): boolean {
  if (process.getuid?.() !== 0 || !existsSync("/proc/mounts")) return false;
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=16m", "tmpfs", at], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

/** Leaves no room for a byte. */
function fill(file: string): void {
  for (const size of [1 << 16, 1]) {
    const piece = Buffer.alloc(size);
    try {
      for (;;) writeFileSync(file, piece, { flag: "a" });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    }
  }
}

test("a budget and a deadline end a training in good order, with its files and its report", async () => {
  await newRunner();
  const asked = await training(100_000);
  const request = { ...asked.request, checkpoint_every: 1000 };
  await peer.grant([{ ...asked, request: { ...request, budget_ms: 300 }, execution: newExecution(), epoch: 1 }]);
  const budget = await finished();
  expect(budget.report).toMatchObject({ ended_by: "budget" });
  expect(weights(budget).length).toBeGreaterThan(0);
  await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a free runner");
  const late = newExecution();
  // A fifth of the attempt's time is kept for its files.
  await peer.grant([{ ...asked, request, execution: late, epoch: 1 }], { attemptDeadline: Date.now() + 6000 });
  await peer.until(() => peer.of("complete").at(-1)?.execution === late, "a result before the deadline", 10_000);
  const ended = await finished();
  expect(ended.report).toMatchObject({ ended_by: "deadline", scores: null });
  expect(ended.report.steps).toBeGreaterThan(0);
  expect(weights(ended).length).toBeGreaterThan(0);
  expect(peer.of("fail")).toEqual([]);
});

test("a canceled training stops between two steps and makes room for other work", async () => {
  await newRunner({ ATELIER_TRAIN: "alone" });
  const lease = { execution: newExecution(), epoch: 1 };
  await peer.grant([{ ...(await training(10_000)), ...lease }]);
  await peer.until(() => steps().length > 0, "a step", 30_000);
  expect(peer.of("ready").at(-1)?.n).toBe(0);
  peer.send({ v: 3, type: "cancel", leases: [lease] });
  await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a runner that takes work again");
  expect(steps().at(-1)).toBeLessThan(10_000);
  expect([peer.of("complete"), peer.of("fail")]).toEqual([[], []]);
});
