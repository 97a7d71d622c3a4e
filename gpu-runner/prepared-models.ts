/**
 * Optimised models kept on disk, packed for this machine's kernels, so that the next session maps them instead of optimising anew.
 * They are prepared by a process of its own at the lowest priority: optimising blocks the thread that does it for seconds to minutes.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { existsSync, mkdirSync, realpathSync, renameSync, rmSync, statSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as ort from "onnxruntime-node";
import type { OrtOptions } from "./ort-session.ts";
import { type DerivedFolder, findDerived, temporaryEnding } from "./weights/derived-files.ts";

const script = fileURLToPath(new URL("./prepare-model.ts", import.meta.url));

const folder: DerivedFolder = "prepared";

/** Memory that optimising takes at its peak, as a multiple of the weights: they are held as they are and packed. */
const PACKING_FACTOR = 1.5;

/** Where prepared models lie. */
export interface PreparedStore {
  cacheDir: string;
}

/** Names the prepared form of a model: by its graph, the state of its weight files, and all that packing depends on. */
export function preparedKey(graph: Uint8Array, files: readonly string[], { provider, threads }: OrtOptions): string {
  const hash = createHash("sha256").update(graph);
  for (const file of files) {
    const path = realpathSync(file);
    const { size, mtimeMs, ino } = statSync(path);
    hash.update(JSON.stringify([path, size, mtimeMs, ino]));
  }
  const machine = [ort.env.versions.node ?? "", process.arch, cpus()[0]?.model ?? "", provider, threads ?? "all"];
  return hash.update(JSON.stringify(machine)).digest("hex");
}

/** The prepared model's file, where there is one; opening it counts as use. */
export function findPrepared({ cacheDir }: PreparedStore, key: string): string | undefined {
  return findDerived(join(folderOf(cacheDir, key), "model.onnx"));
}

/** Removes what turned out to be unreadable. */
export function discardPrepared({ cacheDir }: PreparedStore, key: string): void {
  rmSync(folderOf(cacheDir, key), { recursive: true, force: true });
}

/** Preparations wait for one another: each takes as much memory as the model itself. */
let queue: Promise<unknown> = Promise.resolve();
const running = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

/**
 * Prepares a model in the background; resolves to its file, or to undefined where that failed (no memory, no disk), which the warning tells.
 * @param model its file, which has to stay in place until then, and the bytes of its weights
 */
export function prepare(
  store: PreparedStore,
  key: string,
  model: { file: string; bytes: number },
  options: OrtOptions,
  signal: AbortSignal,
): Promise<string | undefined> {
  const prepared = queue.then(async () => {
    if (signal.aborted) return undefined;
    const found = findPrepared(store, key);
    if (found) return found;
    const temporary = join(store.cacheDir, folder, `${randomUUID()}${temporaryEnding}`);
    try {
      requireMemory(model.bytes * PACKING_FACTOR);
      mkdirSync(temporary, { recursive: true });
      await runPreparation([model.file, join(temporary, "model.onnx"), JSON.stringify(options)], signal);
      if (existsSync(folderOf(store.cacheDir, key))) return findPrepared(store, key);
      renameSync(temporary, folderOf(store.cacheDir, key));
      return findPrepared(store, key);
    } catch (error) {
      if (!signal.aborted) process.emitWarning(`a model could not be prepared: ${error instanceof Error ? error.message : error}`);
      return undefined;
    } finally {
      rmSync(temporary, { recursive: true, force: true });
    }
  });
  queue = prepared;
  return prepared;
}

/** A machine that runs out of memory ends processes, perhaps the one that serves: better to go on with the slower form. */
function requireMemory(bytes: number): void {
  const free = process.availableMemory();
  if (bytes > free)
    throw new Error(`expected ${(bytes / 1e9).toFixed(1)} GB of free memory for packing its weights, got ${(free / 1e9).toFixed(1)} GB`);
}

function runPreparation(args: readonly string[], signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [script, ...args], { stdio: ["ignore", "ignore", "pipe"] });
    running.add(child);
    const stop = (): void => void child.kill("SIGKILL");
    signal.addEventListener("abort", stop, { once: true });
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said = (said + text).slice(-2000);
    });
    child.once("error", reject);
    child.once("close", (code, killedBy) => {
      running.delete(child);
      signal.removeEventListener("abort", stop);
      if (code === 0) resolve();
      else reject(new Error(said.trim().split("\n").at(-1) || `ended by ${killedBy ?? `exit code ${code}`}`));
    });
  });
}

function folderOf(cacheDir: string, key: string): string {
  return join(cacheDir, folder, key);
}
