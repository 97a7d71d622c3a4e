/** What executions are computed from beside their model: pictures and adapters, fetched by the grant's capabilities and kept by content. */
import { createHash, type Hash, randomUUID } from "node:crypto";
import { type FileHandle, mkdir, open, readdir, rename, rm, stat, unlink, utimes } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { runnerPaths } from "../shared/protocol.ts";
import { type Backoff, backoffMs } from "./backoff.ts";
import type { HeldLease } from "./leases.ts";
import type { Fetched } from "./model-messages.ts";
import { networkProblem } from "./uploads.ts";
import { sha256OfFile } from "./weights/file-hash.ts";

export interface InputStoreOptions {
  edgeUrl: URL;
  /** Files lie in its folders `inputs` and `adapters`; may be shared between runners of one machine. */
  cacheDir: string;
  /** Bytes that both may take. What is in use stays beyond it. */
  budget: number;
  /** Most time without a byte, in milliseconds. */
  timeoutMs?: number;
  backoff?: Backoff;
  /** Called before a file is asked for again, with what went wrong. */
  onRetry?: (problem: string) => void;
}

type Input = HeldLease["inputs"][number];

/** An input could not be had. `retryable`: it may come later, or to another runner. `status`: of the edge's answer, or 0. */
export class InputFailed extends Error {
  override readonly name = "InputFailed";
  readonly retryable: boolean;
  readonly status: number;
  constructor(message: string, retryable: boolean, status = 0) {
    super(message);
    this.retryable = retryable;
    this.status = status;
  }

  get isGone(): boolean {
    return this.status === 404 || this.status === 410;
  }
}

/** A file may arrive damaged so often before its attempt is given up. */
const MOST_DAMAGED = 3;

/** The directory of input files. Every name in it is made of hashes and of paths that the grant's schema allows; no URL of a user is ever opened. */
export class InputStore {
  readonly #options: Required<InputStoreOptions>;
  /** One fetch of a file at a time: who comes second finds it there. */
  readonly #fetching = new Map<string, Promise<unknown>>();
  readonly #users = new Map<string, number>();
  /** State of the files whose content this process has checked. */
  readonly #checked = new Map<string, string>();

  constructor(options: InputStoreOptions) {
    this.#options = { timeoutMs: 30_000, backoff: { baseMs: 250, capMs: 10_000 }, onRetry: () => {}, ...options };
  }

  /**
   * Brings all files of an execution here. They stay until `release`.
   * @throws InputFailed; an AbortError when the lease ends meanwhile.
   */
  async fetch(lease: HeldLease): Promise<Fetched> {
    const { files, adapters, wanted } = this.#placesOf(lease);
    for (const path of wanted.keys()) this.#users.set(path, (this.#users.get(path) ?? 0) + 1);
    void once(lease.ended).then(() => this.#forget(wanted.keys()));
    for (const [path, input] of wanted) await this.#inTurn(path, () => this.#bring(path, input, lease));
    return { files, adapters };
  }

  /** Where an execution's files belong. */
  #placesOf({ inputs, adapters }: HeldLease): Fetched & { wanted: Map<string, Input> } {
    const { cacheDir } = this.#options;
    const wanted = new Map<string, Input>();
    const fetched: Fetched = { files: {}, adapters: {} };
    const bySha = new Map(inputs.map(input => [input.sha256, input]));
    for (const { hash, files } of adapters) {
      const folder = join(cacheDir, "adapters", hash.replace(":", "-"));
      fetched.adapters[hash] = files.length === 1 ? join(folder, files[0]!.path) : folder;
      for (const { path, sha256 } of files) {
        const input = bySha.get(sha256);
        if (!input) throw new InputFailed(`The grant names no capability for a file of the adapter ${hash}.`, false);
        wanted.set(join(folder, path), input);
      }
    }
    const ofAdapters = new Set(adapters.flatMap(({ files }) => files.map(({ sha256 }) => sha256)));
    for (const input of inputs) {
      if (ofAdapters.has(input.sha256)) continue;
      const path = join(cacheDir, "inputs", input.sha256);
      fetched.files[input.sha256] = path;
      wanted.set(path, input);
    }
    return { ...fetched, wanted };
  }

  async #inTurn<T>(path: string, work: () => Promise<T>): Promise<T> {
    const before = this.#fetching.get(path) ?? Promise.resolve();
    const turn = before.catch(() => {}).then(work);
    this.#fetching.set(path, turn);
    try {
      return await turn;
    } finally {
      if (this.#fetching.get(path) === turn) this.#fetching.delete(path);
    }
  }

  async #bring(path: string, input: Input, lease: HeldLease): Promise<void> {
    lease.ended.throwIfAborted();
    try {
      if (await this.#isHere(path, input)) return;
      await mkdir(dirname(path), { recursive: true });
      await this.#makeRoom(input.bytes);
      await this.#download(path, input, lease);
    } catch (error) {
      if (isDiskFull(error)) throw new InputFailed("The runner's disk is full.", true);
      throw error;
    }
  }

  async #isHere(path: string, { sha256, bytes }: Input): Promise<boolean> {
    const found = await stat(path).catch(() => undefined);
    if (!found) return false;
    const state = [found.ino, found.size, found.mtimeMs].join("/");
    const isRight = this.#checked.get(path) === state || (found.size === bytes && (await sha256OfFile(path)) === sha256);
    if (!isRight) {
      await rm(path, { force: true });
      return false;
    }
    this.#checked.set(path, state);
    // Used now; the time of its content stays.
    await utimes(path, new Date(), found.mtime);
    return true;
  }

  /** Into a temporary file, goes on where a connection broke off, and gives the file its name when size and hash are right. */
  async #download(path: string, input: Input, lease: HeldLease): Promise<void> {
    const partial = `${path}.${randomUUID()}.part`;
    const file = await open(partial, "ax");
    try {
      await this.#receiveAll(file, input, lease);
      await file.sync();
      await file.close();
      await rename(partial, path);
    } catch (error) {
      await file.close().catch(() => {});
      await unlink(partial).catch(() => {});
      throw error;
    }
  }

  async #receiveAll(file: FileHandle, input: Input, lease: HeldLease): Promise<void> {
    const { backoff, onRetry } = this.#options;
    let progress = { hash: createHash("sha256"), bytes: 0 };
    for (let attempt = 0, damaged = 0; ; attempt++) {
      lease.activity++;
      const problem = await this.#receive(file, progress, input, lease);
      if (problem === undefined) {
        if (progress.hash.digest("hex") === input.sha256) return;
        if (++damaged === MOST_DAMAGED) throw new InputFailed(`The input ${input.sha256} arrived damaged ${damaged} times.`, true);
        progress = { hash: createHash("sha256"), bytes: 0 };
        await file.truncate(0);
      }
      const said = problem ?? "damaged on the way";
      const wait = backoffMs(attempt, backoff);
      if (Date.now() + wait > lease.attemptDeadline)
        throw new InputFailed(`The input ${input.sha256} did not arrive before the attempt's deadline: ${said}.`, true);
      onRetry(said);
      await delay(wait, undefined, { signal: lease.ended });
    }
  }

  /** One request for what is missing. Undefined when all bytes are there, else what kept them from coming. @throws InputFailed for good */
  async #receive(file: FileHandle, progress: { hash: Hash; bytes: number }, input: Input, lease: HeldLease): Promise<string | undefined> {
    const { edgeUrl, timeoutMs } = this.#options;
    const idle = new AbortController();
    const timer = setTimeout(() => idle.abort(new Error("timed out")), timeoutMs);
    try {
      const response = await fetch(new URL(runnerPaths.object(input.key), edgeUrl), {
        headers: {
          authorization: `Bearer ${input.capability}`,
          "x-request-id": lease.requestId,
          ...(progress.bytes > 0 && { range: `bytes=${progress.bytes}-` }),
        },
        redirect: "manual",
        signal: AbortSignal.any([lease.ended, idle.signal]),
      });
      const problem = refusalOf(response.status, input);
      if (problem !== undefined) {
        await response.body?.cancel();
        return problem;
      }
      // An answer with the whole file begins anew.
      if (response.status === 200 && progress.bytes > 0) {
        Object.assign(progress, { hash: createHash("sha256"), bytes: 0 });
        await file.truncate(0);
      }
      for await (const chunk of response.body ?? []) {
        timer.refresh();
        lease.activity++;
        if (progress.bytes + chunk.byteLength > input.bytes)
          throw new InputFailed(`The input ${input.sha256}: expected ${input.bytes} bytes, got more.`, true);
        await file.appendFile(chunk);
        progress.hash.update(chunk);
        progress.bytes += chunk.byteLength;
      }
      return progress.bytes === input.bytes ? undefined : "cut off";
    } catch (error) {
      if (lease.ended.aborted || error instanceof InputFailed || isDiskFull(error)) throw error;
      return networkProblem(error);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Removes the least recently used files that nobody uses, until so many more bytes fit. */
  async #makeRoom(bytes: number): Promise<void> {
    const files = await this.#files();
    let held = files.reduce((sum, file) => sum + file.bytes, 0);
    for (const { path, bytes: freed } of files.sort((a, b) => a.usedAt - b.usedAt)) {
      if (held + bytes <= this.#options.budget) return;
      if (this.#users.has(path)) continue;
      await rm(path, { force: true });
      held -= freed;
    }
  }

  async #files(): Promise<{ path: string; bytes: number; usedAt: number }[]> {
    const folders = ["inputs", "adapters"].map(name => join(this.#options.cacheDir, name));
    const entries = await Promise.all(folders.map(folder => readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])));
    const paths = entries.flat().flatMap(entry => (entry.isFile() ? [join(entry.parentPath, entry.name)] : []));
    const files = await Promise.all(paths.map(async path => ({ path, stats: await stat(path).catch(() => undefined) })));
    return files.flatMap(({ path, stats }) => (stats ? [{ path, bytes: stats.size, usedAt: stats.atimeMs }] : []));
  }

  #forget(paths: Iterable<string>): void {
    for (const path of paths) {
      const users = (this.#users.get(path) ?? 1) - 1;
      if (users > 0) this.#users.set(path, users);
      else this.#users.delete(path);
    }
  }
}

/** Why this answer brings no bytes; undefined where it does. @throws InputFailed where asking again would not help */
function refusalOf(status: number, { sha256 }: Input): string | undefined {
  if (status === 200 || status === 206) return undefined;
  const problem = `HTTP ${status}`;
  if (status >= 500 || [408, 416, 429].includes(status)) return problem;
  const isGone = status === 404 || status === 410;
  throw new InputFailed(
    isGone ? `The file ${sha256}, an input picture's or an adapter's, was deleted.` : `The edge refused the input ${sha256}: ${problem}.`,
    !isGone,
    status,
  );
}

function once(signal: AbortSignal): Promise<void> {
  return new Promise(resolve => (signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve(), { once: true })));
}

function isDiskFull(error: unknown): boolean {
  return error instanceof Error && "code" in error && ["ENOSPC", "EDQUOT", "EFBIG"].includes(String(error.code));
}
