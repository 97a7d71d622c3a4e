import { setTimeout as delay } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import type { ProgressReport } from "../shared/protocol.ts";
import type { TrainingEvent, TrainingResult } from "../shared/training.ts";
import { type Backoff, backoffMs } from "./backoff.ts";
import { ComputeFailed, ModelLoadFailed } from "./compute-errors.ts";
import type { Logger } from "./log.ts";
import type { Metrics } from "./metrics.ts";
import {
  type BatchItem,
  cells,
  type FromWorker,
  fromWorkerSchema,
  SHARED_BYTES,
  type ToWorker,
  type TrainingTask,
  type WorkerData,
} from "./model-messages.ts";
import type { RegisteredModel } from "./model-registry.ts";
import type { Picture } from "./pipeline/context.ts";
import { ThreadPulse } from "./thread-pulse.ts";
import { firstAnswer } from "./thread-start.ts";
import { type ItemMessage, type LossReason, lost, type Pending, receive, settle, type ThreadTask } from "./thread-task.ts";

export interface ComputeItem extends BatchItem {
  onProgress(report: ProgressReport): void;
}

/** How a training is followed. */
export interface TrainingRun {
  onEvent(event: TrainingEvent): void;
  /** A whole checkpoint stands at the path; a later one takes it by renaming. */
  onCheckpoint(path: string): void;
}

export interface ModelThreadOptions extends Omit<WorkerData, "shared"> {
  /** The module that runs in the thread. */
  script: URL;
  log: Logger;
  metrics: Metrics;
  /** Least time without a step after which the thread counts as hung, in milliseconds. */
  watchdogMs: number;
  /** Most time for loading a model, and for the start, in milliseconds. */
  loadMs: number;
  /** How long an ended thread may take to go away, in milliseconds. */
  terminateMs?: number;
  reload?: Backoff;
  /** The thread does not go away, since it is stuck in native code: only the end of the process frees what it holds. */
  onStuck(): void;
  /** `state`, `problem`, `models` or `resident` have changed. */
  onChange(): void;
}

/** `loading` until the models are there, `idle`, `computing`, `ended` after `stop`. */
export type ThreadState = "loading" | "idle" | "computing" | "ended";

/** Phases of a training that begin with opening sessions. */
const openingPhases: ReadonlySet<string> = new Set(["loading", "calibrating", "training"]);
/** Most time that a thread gets to stop by itself, in milliseconds; never more than the watchdog's. */
const MOST_QUIET_MS = 15_000;

/**
 * The thread that holds the models, seen from the process that stays responsive. One batch at a time, or one training and one batch that is
 * computed between its steps. A computation that hangs, overruns its deadline or crashes fails as retryable, and where the thread does not
 * come to rest, another one takes its place.
 *
 * A thread is not ended while it may be inside ONNX Runtime, if that can be helped: the binding throws out of a thread that is being torn down,
 * and that aborts the whole process. So it is asked first to stop between two steps.
 */
export class ModelThread {
  readonly #options: ModelThreadOptions;
  readonly #shared = new SharedArrayBuffer(SHARED_BYTES);
  readonly #cells = new Uint32Array(this.#shared);
  readonly #stop = new AbortController();
  #worker: Worker | undefined;
  #state: ThreadState = "loading";
  #problem: string | undefined;
  #configured: readonly RegisteredModel[] = [];
  #registered: readonly RegisteredModel[];
  #resident: readonly string[] = [];
  /** Looks at a thread that was loading a model, or whose pictures wait for a training's step: signs of life that are no steps. */
  #signs = { loading: 0, waiting: 0 };
  #started = false;
  /** By number, what the thread has not said to be done with; what was given up has nothing pending. */
  readonly #running = new Map<number, ThreadTask>();
  #pulse: ThreadPulse | undefined;
  #watching: NodeJS.Timeout | undefined;
  /** Number of the latest task. */
  #tasks = 0;
  /** Resolves when the thread is done with all that it was asked for. */
  #busy = Promise.withResolvers<void>();

  constructor(options: ModelThreadOptions) {
    this.#options = options;
    this.#registered = options.registered;
  }

  get state(): ThreadState {
    return this.#state;
  }
  /** Why no thread is up, in words for an operator. */
  get problem(): string | undefined {
    return this.#problem;
  }
  /** Every model that it holds or can load. */
  get models(): readonly RegisteredModel[] {
    return [...this.#configured, ...this.#registered];
  }
  /** Content hashes of what lies in the thread's memory, the latest used first. */
  get resident(): readonly string[] {
    return this.#resident;
  }
  /** Steps of all threads since the start, and signs of life while there are none and none are missed. */
  get counter(): number {
    return this.#steps + this.#signs.waiting;
  }
  get #steps(): number {
    return Atomics.load(this.#cells, cells.counter) + this.#signs.loading;
  }
  /** Whether a training takes its steps and no pictures wait or are made between them: then `compute` takes a batch. */
  get isBetweenSteps(): boolean {
    const [only, ...others] = this.#running.values();
    return this.#state === "computing" && only?.kind === "training" && !only.isOpening && only.pending.size > 0 && others.length === 0;
  }

  /** Replaces the registry's part of `models`. */
  register(models: readonly RegisteredModel[]): void {
    this.#registered = models;
    this.#worker?.postMessage({ type: "registered", models: [...models] } satisfies ToWorker);
    this.#options.onChange();
  }

  /**
   * Starts the thread and loads the first model. Waits for room where the disk is full; later losses of the thread are made good without a call.
   * @throws ModelLoadFailed where the first start shows that no model can be read.
   */
  async start(): Promise<void> {
    const { reload = { baseMs: 1000, capMs: 60_000 } } = this.#options;
    for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
      try {
        this.#configured = await this.#launch();
        this.#started = true;
        this.#enter("idle");
        return;
      } catch (error) {
        if (!(error instanceof ModelLoadFailed)) throw error;
        if (this.#stop.signal.aborted) return;
        if (!error.diskFull && !this.#started) throw error;
        this.#enter("loading", error.message);
        await delay(backoffMs(attempt, reload), undefined, { signal: this.#stop.signal }).catch(() => {});
      }
    }
  }

  /**
   * Computes a batch: one promise per item, in their order, which ends independently of the others. Each rejects with ComputeFailed or
   * ComputeCanceled; all of them with an Error where the thread is neither idle nor between a training's steps.
   */
  compute(items: readonly ComputeItem[], deadline: number): Promise<Picture>[] {
    if (this.#state !== "idle" && !this.isBetweenSteps)
      return items.map(() => Promise.reject(new Error(`the model thread is ${this.#state}, not idle`)));
    const pending = new Map<number, Pending>();
    const pictures = items.map(({ onProgress }, item) => {
      const { promise, resolve, reject } = Promise.withResolvers<Picture>();
      const receive = (message: ItemMessage) => {
        if (message.type === "picture") resolve(message.picture);
        if (message.type !== "progress") return message.type === "picture";
        const { step, steps, preview } = message;
        onProgress({ step, steps, ...(preview !== undefined && { preview }) });
        return false;
      };
      pending.set(item, { receive, reject });
      return promise;
    });
    const batch = items.map(({ request, inputs }) => ({ request, inputs }));
    this.#begin(task => ({ type: "compute", task, items: batch }), { kind: "pictures", pending, deadline, isOpening: false });
    return pictures;
  }

  /** Computes a training. @throws ComputeFailed; ComputeCanceled, after its last checkpoint; Error where the thread is not idle */
  async train(training: TrainingTask, { onEvent, onCheckpoint }: TrainingRun, deadline: number): Promise<TrainingResult> {
    if (this.#state !== "idle") throw new Error(`the model thread is ${this.#state}, not idle`);
    const { promise, resolve, reject } = Promise.withResolvers<TrainingResult>();
    const running: ThreadTask = { kind: "training", pending: new Map(), deadline, isOpening: true };
    const receive = (message: ItemMessage) => {
      if (message.type === "event") {
        onEvent(message.event);
        this.#noteOpening(running, message.event);
      } else if (message.type === "checkpoint") onCheckpoint(message.path);
      else if (message.type === "trained") resolve(message.result);
      return message.type === "trained";
    };
    running.pending.set(0, { receive, reject });
    this.#begin(task => ({ type: "train", task, training }), running);
    return promise;
  }

  #noteOpening(running: ThreadTask, event: TrainingEvent): void {
    const wasOpening = running.isOpening;
    if (event.type === "phase") running.isOpening = openingPhases.has(event.phase);
    else if (event.type === "step") running.isOpening = false;
    if (running.isOpening !== wasOpening) this.#options.onChange();
  }

  /** Hands a task to the thread and watches it until it is at rest. */
  #begin(message: (task: number) => ToWorker, running: ThreadTask): void {
    const worker = this.#worker!;
    const task = ++this.#tasks;
    if (this.#running.size === 0) {
      this.#pulse = new ThreadPulse(this.#options, this.#steps, performance.now());
      this.#busy = Promise.withResolvers();
      this.#watching = setInterval(() => this.#watch(worker), Math.min(1000, this.#options.watchdogMs / 4));
    }
    this.#running.set(task, running);
    worker.postMessage(message(task));
    this.#enter("computing");
  }

  /** Asks what is computed, or one item of the batch, to stop before its next step. */
  cancel(item?: number): void {
    for (const [task, { kind }] of this.#running) {
      if (kind === "pictures") Atomics.store(this.#cells, item === undefined ? cells.canceled : cells.canceledItems + item, task);
      else if (item === undefined) Atomics.store(this.#cells, cells.canceledTraining, task);
    }
  }

  /** Asks the training to stop after its step; pictures that are made meanwhile go on. */
  cancelTraining(): void {
    for (const [task, { kind }] of this.#running) if (kind === "training") Atomics.store(this.#cells, cells.canceledTraining, task);
  }

  /** Lets the thread come to rest and ends it; false where it does not go away. */
  async stop(): Promise<boolean> {
    this.#stop.abort();
    this.cancel();
    if (this.#worker) await this.#quiet();
    this.#settle(() => new ComputeFailed("runner_failed", "The runner was stopped.", true));
    const gone = await this.#terminate();
    this.#enter("ended");
    return gone;
  }

  /** Starts a thread and waits until it has loaded the models. */
  async #launch(): Promise<RegisteredModel[]> {
    const { script, models, provider, cacheDir, memoryBudget, cacheBudget, threads, loadMs, log } = this.#options;
    const settings = { models, registered: [...this.#registered], provider, cacheDir, memoryBudget, cacheBudget };
    const workerData: WorkerData = { ...settings, ...(threads !== undefined && { threads }), shared: this.#shared };
    const { ATELIER_RUNNER_TOKEN: _, ...env } = process.env;
    const worker = new Worker(script, { workerData, env, name: "model" });
    this.#worker = worker;
    this.#busy = Promise.withResolvers();
    this.#resident = [];
    Atomics.store(this.#cells, cells.loading, 0);
    this.#attendNotes(worker);
    const answer = firstAnswer(worker);
    void answer.catch(() => {}).finally(this.#busy.resolve);
    try {
      const loaded = await within(loadMs, answer);
      if (loaded === undefined) throw new ModelLoadFailed(`loading the models took longer than ${loadMs} ms`);
      this.#attend(worker);
      return loaded;
    } catch (error) {
      log.error({ reason: error instanceof Error ? error.message : "unknown error" }, "the models could not be loaded");
      if (!(await this.#quiet()) || !(await this.#terminate())) this.#options.onStuck();
      throw error;
    }
  }

  #attend(worker: Worker): void {
    worker.on("message", (value: unknown) => {
      const message = fromWorkerSchema.safeParse(value).data;
      if (!message) this.#replace(worker, "crashed", "it sent a message that could not be read");
      else if (worker === this.#worker && "task" in message) this.#receive(message);
    });
    worker.on("messageerror", error => this.#replace(worker, "crashed", error.message));
    worker.on("error", error => this.#replace(worker, "crashed", error instanceof Error ? error.message : "unknown error"));
    worker.on("exit", code => this.#replace(worker, "crashed", `exit code ${code}`));
  }

  /** What a thread says at any time, also while it starts. */
  #attendNotes(worker: Worker): void {
    worker.on("message", (value: unknown) => {
      const message = fromWorkerSchema.safeParse(value).data;
      if (message?.type === "note") this.#options.log[message.level](message.fields, message.message);
      else if (message?.type === "resident" && worker === this.#worker) {
        this.#resident = message.hashes;
        this.#options.onChange();
      }
    });
  }

  #receive(message: Extract<FromWorker, { task: number }>): void {
    const running = this.#running.get(message.task);
    if (!running) return;
    if (message.type === "done") {
      this.#running.delete(message.task);
      settle(running, () => new ComputeFailed("runner_failed", "The computation ended without an answer.", true));
      if (this.#running.size === 0) this.#rest();
      // What was given up has left the state `loading`, until all of it is done.
      this.#enter(this.#running.size === 0 ? "idle" : this.#state, this.#running.size === 0 ? undefined : this.#problem);
      return;
    }
    receive(running, message);
  }

  /** The thread is at nothing, or is no more. */
  #rest(): void {
    clearInterval(this.#watching);
    this.#pulse = undefined;
    this.#running.clear();
    this.#busy.resolve();
  }

  /** Gives up a computation that hangs (no step for too long), or whose deadline has passed. */
  #watch(worker: Worker): void {
    const pulse = this.#pulse;
    const isGivenUp = this.#state !== "computing";
    if (!pulse || isGivenUp || worker !== this.#worker || this.#stop.signal.aborted) return;
    const now = performance.now();
    if (pulse.isLoading(Atomics.load(this.#cells, cells.loading) === 1, now)) this.#signs.loading++;
    // Whoever counts pictures' steps must not take a training's long step for a hang: this watch knows better.
    if (this.#running.size > 1) this.#signs.waiting++;
    const limit = pulse.overdue(this.#steps, now);
    if (limit !== undefined) void this.#giveUp(worker, "hung", `no step for ${Math.round(limit)} ms`);
    else this.#watchDeadlines(worker);
  }

  #watchDeadlines(worker: Worker): void {
    const late = [...this.#running.values()].filter(({ deadline, pending }) => Date.now() > deadline && pending.size > 0);
    const detail = "the attempt's deadline has passed";
    if (late.length === 0) return;
    if (late.length === this.#running.size || late.some(({ kind }) => kind === "training")) {
      void this.#giveUp(worker, "overran", detail);
      return;
    }
    // Pictures that came too late between the steps of a training, which goes on.
    this.#options.log.error({ reason: "overran", detail }, "a computation is given up");
    for (const [task, running] of this.#running) {
      if (!late.includes(running)) continue;
      Atomics.store(this.#cells, cells.canceled, task);
      settle(running, () => lost("overran"));
    }
  }

  /** The thread goes on where it comes to rest in time; else it is replaced. */
  async #giveUp(worker: Worker, reason: LossReason, detail: string): Promise<void> {
    this.#options.log.error({ reason, detail }, "a computation is given up");
    this.cancel();
    this.#lose(reason);
    if (!(await this.#quiet())) this.#replace(worker, reason, detail);
  }

  #replace(worker: Worker, reason: LossReason, detail: string): void {
    if (worker !== this.#worker || this.#stop.signal.aborted) return;
    this.#options.log.error({ reason, detail }, "the model thread is replaced");
    this.#options.metrics.threadRestarts.inc({ reason });
    this.#lose(reason);
    void this.#terminate().then(gone => {
      if (!gone) this.#options.onStuck();
      else if (!this.#stop.signal.aborted) void this.start();
    });
  }

  #lose(reason: LossReason): void {
    this.#enter("loading", `the model thread ${reason}`);
    this.#settle(() => lost(reason));
  }

  /** Waits until the thread is at rest; false where that takes too long. */
  async #quiet(): Promise<boolean> {
    const rest = this.#busy.promise.then(() => true);
    return (await within(Math.min(MOST_QUIET_MS, this.#options.watchdogMs), rest)) ?? false;
  }

  async #terminate(): Promise<boolean> {
    const worker = this.#worker;
    this.#worker = undefined;
    this.#rest();
    if (!worker) return true;
    const gone = worker.terminate().then(() => true);
    return (await within(this.#options.terminateMs ?? 5000, gone)) ?? false;
  }

  /** Ends all that runs: what has no answer gets this error. */
  #settle(error: () => Error): void {
    for (const running of [...this.#running.values()]) settle(running, error);
  }

  #enter(state: ThreadState, problem?: string): void {
    this.#state = this.#stop.signal.aborted ? "ended" : state;
    this.#problem = problem;
    this.#options.onChange();
  }
}

/** What the promise gives, or undefined where it takes longer. */
async function within<T>(ms: number, promise: Promise<T>): Promise<T | undefined> {
  const over = new AbortController();
  try {
    return await Promise.race([promise, delay(ms, undefined, { signal: over.signal })]);
  } finally {
    over.abort();
  }
}
