/**
 * A model thread whose behaviour stands in the prompts, for tests of what surrounds it:
 * `steps <ms>` takes the request's steps, `slowing <ms>` takes longer for each, `hang` spins for ever, `stuck` blocks in native code, `crash` throws,
 * `exit` ends, `fail` reports, `load <ms>` loads a model for so long. The items of a batch are computed one after another.
 * A training takes a step every few milliseconds until it is canceled; pictures that come meanwhile are computed beside it.
 * Folders: `…/missing` can't be read; for `…/full` the disk is full until the file of that name is gone.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import {
  cells,
  type FromWorker,
  isCanceled,
  isTrainingCanceled,
  toWorkerSchema,
  workerDataSchema,
} from "../../../gpu-runner/model-messages.ts";

export const STUCK_S = 4;

const { models, shared } = workerDataSchema.parse(workerData);
const memory = new Uint32Array(shared);
const post = (message: FromWorker): void => parentPort?.postMessage(message);

type Behaviour = (task: number, item: number, steps: number, ms: number) => unknown;

parentPort?.on("message", async (value: unknown) => {
  const message = toWorkerSchema.parse(value);
  if (message.type === "train") return train(message.task);
  if (message.type !== "compute") return;
  const { task, items } = message;
  for (const [item, { request, inputs }] of items.entries()) {
    const [what = "", argument = "0"] = request.prompt.split(" ");
    if (what === "read") files = Object.values({ ...inputs.files, ...inputs.adapters }).map(path => readFileSync(path, "utf8"));
    await behaviours[what]?.(task, item, request.steps, Number(argument));
  }
  post({ type: "resident", hashes: [...new Set(items.map(({ request }) => request.model))] });
  post({ type: "done", task });
});

async function train(task: number): Promise<void> {
  post({ type: "event", task, item: 0, event: { type: "phase", phase: "training" } });
  for (let step = 1; !isTrainingCanceled(memory, task); step++) {
    await delay(5);
    Atomics.add(memory, cells.counter, 1);
    const numbers = { loss: 1, smoothed_loss: 1, learning_rate: 1, seconds_left: 1, memory_bytes: 1 };
    post({ type: "event", task, item: 0, event: { type: "step", step, steps: 1e6, ...numbers } });
  }
  post({ type: "canceled", task, item: 0 });
  post({ type: "done", task });
}

let files: string[] = [];

const behaviours: Record<string, Behaviour> = {
  steps: (task, item, steps, ms) => takeSteps(task, item, steps, () => ms),
  slowing: (task, item, steps, ms) => takeSteps(task, item, steps, step => ms * step),
  read: (task, item) => postPicture(task, item, files.join()),
  hang: () => {
    for (;;);
  },
  stuck: () => spawnSync("sleep", [String(STUCK_S)]),
  crash: () => {
    setTimeout(() => {
      throw new Error("crashed as told");
    }, 50);
    return delay(60_000);
  },
  exit: () => process.exit(3),
  garbage: (task, item) => {
    parentPort?.postMessage({ type: "picture", task, item });
    return delay(60_000);
  },
  load: async (task, item, steps, ms) => {
    Atomics.store(memory, cells.loading, 1);
    await delay(ms);
    Atomics.store(memory, cells.loading, 0);
    await takeSteps(task, item, steps, () => 1);
  },
  fail: (task, item) =>
    post({ type: "failed", task, item, code: "runner_failed", message: "failed as told", retryable: false, detail: "as told" }),
};

async function takeSteps(task: number, item: number, steps: number, msOf: (step: number) => number): Promise<void> {
  for (let step = 1; step <= steps; step++) {
    await delay(msOf(step));
    if (isCanceled(memory, task, item)) return post({ type: "canceled", task, item });
    Atomics.add(memory, cells.counter, 1);
    post({ type: "progress", task, item, step, steps });
  }
  postPicture(task, item, `picture ${task}.${item}`);
}

function postPicture(task: number, item: number, content: string): void {
  const bytes = new TextEncoder().encode(content);
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  post({ type: "picture", task, item, picture: { bytes, mediaType: "image/png", width: 128, height: 128, sha256 } });
}

if (models.some(folder => folder.endsWith("missing"))) post({ type: "load_failed", message: "no such model", disk_full: false });
else if (models.some(folder => folder.endsWith("full") && existsSync(folder)))
  post({ type: "load_failed", message: "no space left", disk_full: true });
else post({ type: "loaded", models: models.map(path => ({ path, hash: `sha256:${"0".repeat(64)}` })) });
