import { setTimeout as delay } from "node:timers/promises";
import { ulid } from "ulid";
import { ENGINE_VERSION } from "../shared/engine.ts";
import type { Lease } from "../shared/protocol.ts";
import { ComputeCanceled, ComputeFailed } from "./compute-errors.ts";
import { ConfigError, type RunnerConfig } from "./config.ts";
import { Connection, type Incoming, type Outgoing, type Welcome } from "./connection.ts";
import { GrantRefused, type LeaseMessage, verifyLease } from "./grants.ts";
import { InputFailed, InputStore } from "./inputs.ts";
import { failureDetail, failureOf, type LeaseSurroundings } from "./lease-surroundings.ts";
import { type HeldLease, LeaseTable, leaseId } from "./leases.ts";
import type { Logger } from "./log.ts";
import type { Metrics, Outcome } from "./metrics.ts";
import { type RegisteredModel, readModelRegistry, watchModelRegistry } from "./model-registry.ts";
import { ModelThread } from "./model-thread.ts";
import { pictureItem, uploadPicture } from "./picture-lease.ts";
import type { Picture } from "./pipeline/context.ts";
import { runTraining, type TrainingLease } from "./training-lease.ts";

export interface RunnerOptions {
  config: RunnerConfig;
  log: Logger;
  metrics: Metrics;
  /** The module of the model thread. */
  workerScript: URL;
  /** The model thread is stuck in native code: the process has to end. */
  onStuck(): void;
}

/** Results that may wait for the edge at once, beside the other members of a batch; past it no more work is taken, so that they can't pile up in memory. */
const MAX_UNFINISHED = 4;
/** How long a draining runner waits for a training's last checkpoint to be written and uploaded, in milliseconds. */
const CHECKPOINT_GRACE_MS = 15_000;
/** Hashes that `ready` names at most. */
const MOST_RESIDENT = 256;
/** Least time between two sendings of the same `complete` on one socket, in milliseconds. */
const RESEND_MS = 10_000;

/**
 * One runner: takes leases from the dispatcher, fetches their inputs, computes them batch by batch in the model thread, uploads the pictures and
 * says so until the dispatcher has committed them. It decides nothing about an execution: what it holds, it holds until it is told otherwise.
 */
export class Runner {
  readonly instance = `ins_${ulid()}`;
  readonly thread: ModelThread;
  readonly #options: RunnerOptions;
  readonly #connection: Connection;
  readonly #inputs: InputStore;
  #unwatch: () => void = () => {};
  readonly #leases = new LeaseTable();
  readonly #toldAt = new WeakMap<HeldLease, number>();
  /** Messages are handled one after another, so that a cancel never overtakes the grant before it. */
  #inbox: Promise<void> = Promise.resolve();
  #servedModels = "";
  /** What `ready` said last. */
  #saidReady: string | undefined;
  #credit = 0;
  #draining = false;
  /** The latest training: resolves when nothing of it is under way here any more. */
  #training: Promise<void> = Promise.resolve();

  constructor(options: RunnerOptions) {
    const { config, log, metrics, workerScript, onStuck } = options;
    this.#options = options;
    this.thread = new ModelThread({
      script: workerScript,
      models: config.models,
      registered: this.#registry(),
      provider: config.provider,
      cacheDir: config.cacheDir,
      memoryBudget: config.memoryBudget,
      cacheBudget: config.cacheBudget,
      threads: config.threads,
      watchdogMs: config.watchdogMs,
      loadMs: config.loadMs,
      log,
      metrics,
      onStuck,
      onChange: () => this.#threadChanged(),
    });
    this.#inputs = new InputStore({
      edgeUrl: config.edgeUrl,
      cacheDir: config.cacheDir,
      budget: config.inputBudget,
      onRetry: problem => {
        metrics.inputRetries.inc();
        log.warn({ problem }, "an input is fetched again");
      },
    });
    this.#connection = new Connection({
      edgeUrl: config.edgeUrl,
      token: config.token,
      log,
      metrics,
      handlers: {
        hello: () => this.#hello(),
        welcome: message => this.#welcome(message),
        message: message => {
          this.#inbox = this.#inbox.then(() => this.#receive(message));
        },
        heartbeat: () => this.#heartbeat(),
      },
    });
  }

  /** Loads the first model, then connects. @throws ModelLoadFailed */
  async start(): Promise<void> {
    const { modelRegistry } = this.#options.config;
    if (modelRegistry !== undefined) {
      const said = (problem: string) => this.#options.log.error({ problem }, "the model registry can't be read; what it said before holds");
      this.#unwatch = watchModelRegistry(modelRegistry, models => this.thread.register(models), said);
    }
    await this.thread.start();
    if (!this.#draining) this.#connection.start();
  }

  /** The registry's models at the start. @throws ConfigError */
  #registry(): RegisteredModel[] {
    const { modelRegistry } = this.#options.config;
    try {
      return modelRegistry === undefined ? [] : readModelRegistry(modelRegistry);
    } catch (error) {
      throw new ConfigError(error instanceof Error ? error.message : "the model registry can't be read");
    }
  }

  /** Why the runner can't take work now; empty where it can. */
  problems(): string[] {
    const thread = this.thread.problem ?? (this.thread.state === "loading" ? "the models are being loaded" : undefined);
    return [thread, this.#connection.problem, this.#draining ? "draining" : undefined].filter(problem => problem !== undefined);
  }

  /** Brings the metrics that show a state up to date. */
  observe(): void {
    const { metrics } = this.#options;
    metrics.steps.set(this.thread.counter);
    metrics.leases.set(this.#leases.all().length);
    metrics.connected.set(this.#connection.connected ? 1 : 0);
    metrics.credit.set(this.#connection.connected ? this.#credit : 0);
  }

  /**
   * Takes no more work, lets pictures that run come to their end for at most `graceMs`, hands back the rest, a training with a last checkpoint,
   * and disconnects.
   * False where the model thread is stuck in native code and can't be ended.
   */
  async drain(graceMs: number): Promise<boolean> {
    this.#draining = true;
    this.#unwatch();
    this.#offerCredit();
    this.#release(this.#leases.inPhase("granted"));
    // A training would not end within the grace; its checkpoint is all that another runner needs.
    this.thread.cancelTraining();
    const end = Date.now() + graceMs;
    const isWorthWaiting = () => this.#leases.all().some(({ kind, phase }) => kind === "picture" || phase !== "computing");
    while (isWorthWaiting() && Date.now() < end) await delay(50);
    const unfinished = this.#leases.all();
    if (unfinished.length > 0) this.#options.log.warn({ leases: unfinished.length }, "the grace period is over with leases held");
    this.thread.cancel();
    await Promise.race([this.#training, delay(CHECKPOINT_GRACE_MS)]);
    this.#release([...this.#leases.inPhase("computing"), ...this.#leases.inPhase("uploading")]);
    await this.#connection.close();
    return this.thread.stop();
  }

  #hello(): Extract<Outgoing, { type: "hello" }> {
    this.#servedModels = this.#modelHashes().join();
    return {
      type: "hello",
      instance: this.instance,
      engine_version: ENGINE_VERSION,
      provider: this.#options.config.provider,
      models: this.#modelHashes(),
      max_batch: this.#options.config.maxBatch,
      trains: this.#options.config.trains !== "off",
      leases: this.#leases.all().map(leaseId),
    };
  }

  #modelHashes(): string[] {
    return [...new Set(this.thread.models.map(({ hash }) => hash))];
  }

  #welcome({ leases }: Welcome): void {
    for (const lease of leases) if (lease.verdict === "abandon") this.#end(lease, "canceled", "the dispatcher has abandoned the lease");
    for (const lease of this.#leases.all()) this.#tell(lease);
    this.#offerCredit(true);
    this.#heartbeat();
  }

  async #receive(message: Incoming): Promise<void> {
    if (message.type === "lease") await this.#take(message);
    else if (message.type === "cancel") for (const lease of message.leases) this.#end(lease, "canceled", "canceled by the dispatcher");
    else if (message.type === "committed") this.#end(message, "committed", "committed");
    else this.#end(message, "refused", message.reason);
    this.#offerCredit(message.type === "lease");
  }

  /** Verifies a grant before anything of it is computed, and answers it. */
  async #take(message: LeaseMessage): Promise<void> {
    const { log, metrics, config } = this.#options;
    const leases = message.executions.map(leaseId);
    if (this.#draining) {
      this.#connection.send({ type: "release", leases });
      return;
    }
    try {
      const granted = await verifyLease(message, { instance: this.instance, keys: config.grantKeys });
      const batch = this.#leases.newBatch();
      const taken = granted.map(execution => ({ execution, answer: this.#leases.grant(execution, batch) }));
      const [stale, held] = [taken.filter(({ answer }) => answer === "stale"), taken.filter(({ answer }) => answer !== "stale")];
      if (held.length > 0) this.#connection.send({ type: "accept", leases: held.map(({ execution }) => leaseId(execution)) });
      if (stale.length > 0)
        this.#refuse(
          stale.map(({ execution }) => leaseId(execution)),
          "stale_epoch",
          "this epoch is over",
        );
      for (const { execution } of held) this.#logOf(execution).info({ batch: granted.length }, "lease accepted");
      for (const { execution, answer } of taken) if (answer === "new") void this.#fetch(execution);
    } catch (error) {
      if (error instanceof GrantRefused) this.#refuse(leases, error.reason, error.message);
      else {
        metrics.grantsRefused.inc({ reason: "error" });
        log.error({ error: failureDetail(error) }, "a grant could not be verified");
        this.#connection.send({ type: "reject", leases, reason: "the grant could not be verified" });
      }
    }
  }

  #refuse(leases: Lease[], reason: string, message: string): void {
    this.#options.metrics.grantsRefused.inc({ reason });
    this.#options.log.warn({ leases, reason }, message);
    this.#connection.send({ type: "reject", leases, reason: message.slice(0, 500) });
  }

  /** Brings the inputs of a lease here, then computes what can be computed. */
  async #fetch(id: Lease): Promise<void> {
    const lease = this.#leases.find(id);
    if (!lease) return;
    try {
      this.#leases.arrived(lease, await this.#inputs.fetch(lease));
    } catch (error) {
      if (!lease.ended.aborted) this.#inputFailed(lease, error);
    }
    this.#work();
    this.#offerCredit();
  }

  #inputFailed(lease: HeldLease, error: unknown): void {
    if (error instanceof InputFailed && error.status === 409) {
      this.#end(lease, "stale", "the edge refused an input: the lease is over");
      return;
    }
    const { isGone, message, retryable } = error instanceof InputFailed ? error : new InputFailed("An input could not be fetched.", true);
    this.#fail(lease, new ComputeFailed(isGone ? "input_gone" : "runner_failed", message, retryable), error);
  }

  /** Computes the next batch if the thread is free for it. */
  #work(): void {
    const batch = this.#isFree() ? this.#next() : [];
    const held = new Set(this.#modelHashes());
    for (const lease of batch) {
      const missing = [lease.request.model, lease.kind === "picture" ? lease.request.refiner?.model : undefined].find(
        hash => hash !== undefined && !held.has(hash),
      );
      if (missing !== undefined) {
        const error = new ComputeFailed("model_unavailable", `This runner does not hold the model ${missing}.`, false);
        this.#fail(lease, error, error);
      }
    }
    const leases = this.#next().filter(({ batch: number }) => number === batch[0]?.batch);
    if (leases.length > 0) this.#compute(leases);
    else if (batch.length > 0) this.#work();
  }

  #next(): HeldLease[] {
    return this.#leases.next(this.thread.isBetweenSteps);
  }

  /** Whether the thread takes a batch now: at rest with no training about to begin, or between a training's steps where it is so configured. */
  #isFree(): boolean {
    if (this.#draining) return false;
    if (this.thread.isBetweenSteps) return this.#options.config.trains === "between-steps";
    return this.thread.state === "idle" && !this.#isTraining();
  }

  #compute(leases: readonly HeldLease[]): void {
    for (const lease of leases) this.#leases.advance(lease, "computing");
    const began = performance.now();
    const deadline = Math.min(...leases.map(({ attemptDeadline }) => attemptDeadline));
    const [first] = leases;
    if (first?.kind === "training") {
      this.#training = this.#train(first).finally(() => this.#threadChanged());
      return;
    }
    const pictures = this.thread.compute(
      leases.flatMap(lease => (lease.kind === "picture" ? [pictureItem(lease, this.#surroundings(lease))] : [])),
      deadline,
    );
    for (const [item, lease] of leases.entries()) void this.#follow(lease, item, pictures[item]!, began);
    void Promise.allSettled(pictures).then(() => {
      this.#options.metrics.batchSize.observe(leases.length);
      this.#threadChanged();
    });
  }

  async #train(lease: TrainingLease): Promise<void> {
    const onComputed = () => this.#leases.advance(lease, "uploading");
    const around = { ...this.#surroundings(lease), thread: this.thread, isDraining: () => this.#draining, onComputed };
    try {
      const result = await runTraining(lease, around);
      if (result === "stale") this.#end(lease, "stale", "the edge refused the upload: the lease is over");
      else if (result && this.#leases.conclude({ type: "complete", ...leaseId(lease), result })) this.#tell(lease);
    } catch (error) {
      if (!(error instanceof ComputeCanceled) && !lease.ended.aborted) this.#fail(lease, failureOf(error), error);
    }
  }

  /** One member of a batch, from its computation to its upload. */
  async #follow(lease: HeldLease, item: number, computed: Promise<Picture>, began: number): Promise<void> {
    const stop = () => this.thread.cancel(item);
    lease.ended.addEventListener("abort", stop, { once: true });
    try {
      const picture = await computed;
      const took = (performance.now() - began) / 1000;
      this.#options.metrics.executionSeconds.observe(took);
      this.#logOf(lease).info({ seconds: Number(took.toFixed(3)), size: picture.bytes.byteLength }, "computed");
      if (this.#leases.advance(lease, "uploading")) void this.#upload(lease, picture);
    } catch (error) {
      if (!(error instanceof ComputeCanceled)) this.#fail(lease, failureOf(error), error);
    } finally {
      lease.ended.removeEventListener("abort", stop);
    }
  }

  async #upload(lease: HeldLease, picture: Picture): Promise<void> {
    try {
      const result = await uploadPicture(lease, picture, this.#surroundings(lease));
      if (result === "stale") this.#end(lease, "stale", "the edge refused the upload: the lease is over");
      else if (this.#leases.conclude({ type: "complete", ...leaseId(lease), result })) this.#tell(lease);
    } catch (error) {
      if (!lease.ended.aborted) this.#fail(lease, new ComputeFailed("runner_failed", "The picture could not be uploaded.", true), error);
    }
    this.#offerCredit();
  }

  #surroundings(lease: HeldLease): LeaseSurroundings {
    const { config, metrics } = this.#options;
    return { config, metrics, log: this.#logOf(lease) };
  }

  #fail(lease: HeldLease, { code, message, retryable }: ComputeFailed, cause: unknown): void {
    this.#logOf(lease).error({ code, retryable, error: failureDetail(cause) }, "the execution failed");
    if (this.#leases.conclude({ type: "fail", ...leaseId(lease), code, message, retryable })) this.#tell(lease);
  }

  /**
   * Says how a lease ended, if it has. `complete` is kept and said again until it is answered. `fail` has no answer: once it is written to a
   * socket the lease is over here, and should it be lost, the dispatcher sees a lease that no heartbeat names.
   */
  #tell(lease: HeldLease): void {
    if (!lease.verdict || !this.#connection.send(lease.verdict)) return;
    this.#toldAt.set(lease, performance.now());
    if (lease.verdict.type === "fail") this.#end(lease, "failed", "failed");
  }

  #end(lease: Lease, outcome: Outcome, why: string): void {
    const held = this.#leases.find(lease);
    if (!held || !this.#leases.end(held)) return;
    this.#options.metrics.executions.inc({ outcome });
    this.#logOf(held).info({ outcome, phase: held.phase, why }, "the lease is over");
  }

  #release(leases: HeldLease[]): void {
    if (leases.length === 0) return;
    this.#connection.send({ type: "release", leases: leases.map(leaseId) });
    for (const lease of leases) this.#end(lease, "released", "handed back");
  }

  #heartbeat(): void {
    const steps = this.thread.counter;
    const leases = this.#leases.all();
    // An upload that is tried again is alive although the thread takes no step.
    this.#connection.send({ type: "heartbeat", leases: leases.map(lease => ({ ...leaseId(lease), counter: steps + lease.activity })) });
    for (const lease of leases) if (performance.now() - (this.#toldAt.get(lease) ?? 0) > RESEND_MS) this.#tell(lease);
  }

  #threadChanged(): void {
    const isUp = this.thread.state === "idle" || this.thread.state === "computing";
    if (isUp && this.#connection.connected && this.#modelHashes().join() !== this.#servedModels) this.#connection.renew();
    // Another runner can begin at once with what waits here for a thread that has to load its models again.
    if (this.thread.state === "loading") this.#release(this.#leases.inPhase("granted"));
    this.#work();
    this.#offerCredit();
  }

  /** One batch at a time, and none while results pile up. `again`: also where nothing changed, since a grant used the credit up. */
  #offerCredit(again = false): void {
    const free = this.#isFree() && this.#leases.inPhase("granted").length === 0;
    const most = MAX_UNFINISHED + this.#options.config.maxBatch - 1;
    const n = free && this.#leases.all().length < most ? 1 : 0;
    const resident = this.thread.resident.slice(0, MOST_RESIDENT);
    const said = [n, ...resident].join();
    if (said === this.#saidReady && !again) return;
    if (!this.#connection.send({ type: "ready", n, resident })) return;
    this.#saidReady = said;
    this.#credit = n;
  }

  /** Also while the thread is still at rest: a picture that is granted then would wait for the training's first step at least. */
  #isTraining(): boolean {
    return this.#leases.inPhase("computing").some(({ kind }) => kind === "training");
  }

  #logOf({ requestId, execution, epoch }: { requestId: string; execution: string; epoch: number }): Logger {
    return this.#options.log.child({ request_id: requestId, execution, epoch });
  }
}
