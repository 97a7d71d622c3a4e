/**
 * A model thread whose behaviour stands in the prompt, for tests of what surrounds it:
 * `steps <ms>` takes the request's steps, `slowing <ms>` takes longer for each, `hang` spins for ever, `stuck` blocks in native code, `crash` throws, `exit` ends, `fail` reports.
 * Folders: `…/missing` can't be read; for `…/full` the disk is full until the file of that name is gone.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import { cells, type FromWorker, toWorkerSchema, workerDataSchema } from "../../../gpu-runner/model-messages.ts";

export const STUCK_S = 4;

const { models, shared } = workerDataSchema.parse(workerData);
const memory = new Uint32Array(shared);
const post = (message: FromWorker) => parentPort?.postMessage(message);

parentPort?.on("message", (value: unknown) => {
  const { task, request } = toWorkerSchema.parse(value);
  const [what = "", argument = "0"] = request.prompt.split(" ");
  void behaviours[what]?.(task, request.steps, Number(argument));
});

const behaviours: Record<string, (task: number, steps: number, ms: number) => unknown> = {
  steps: (task, steps, ms) => takeSteps(task, steps, () => ms),
  slowing: (task, steps, ms) => takeSteps(task, steps, step => ms * step),
  hang: () => {
    for (;;);
  },
  stuck: () => spawnSync("sleep", [String(STUCK_S)]),
  crash: () => {
    throw new Error("crashed as told");
  },
  exit: () => process.exit(3),
  garbage: task => parentPort?.postMessage({ type: "picture", task }),
  fail: task => post({ type: "failed", task, code: "runner_failed", message: "failed as told", retryable: false, detail: "as told" }),
};

async function takeSteps(task: number, steps: number, msOf: (step: number) => number): Promise<void> {
  for (let step = 1; step <= steps; step++) {
    await delay(msOf(step));
    if (Atomics.load(memory, cells.canceled) === task) return post({ type: "canceled", task });
    Atomics.add(memory, cells.counter, 1);
    post({ type: "progress", task, step, steps });
  }
  const bytes = new TextEncoder().encode(`picture ${task}`);
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  post({ type: "picture", task, picture: { bytes, mediaType: "image/png", width: 128, height: 128, sha256 } });
}

if (models.some(folder => folder.endsWith("missing"))) post({ type: "load_failed", message: "no such model", disk_full: false });
else if (models.some(folder => folder.endsWith("full") && existsSync(folder)))
  post({ type: "load_failed", message: "no space left", disk_full: true });
else post({ type: "loaded", models: models.map(folder => ({ folder, hash: `sha256:${"0".repeat(64)}` })) });
