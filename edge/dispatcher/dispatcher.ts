import { DurableObject } from "cloudflare:workers";
import type { PoolStatus } from "../../shared/admin.ts";
import { ENGINE_VERSION, PROTOCOL_VERSION } from "../../shared/engine.ts";
import { type ErrorCode, jobErrorSchema } from "../../shared/errors.ts";
import { executionResultSchema, type RunnerMessage } from "../../shared/protocol.ts";
import { type Env, settings } from "../env.ts";
import { errorFields, log } from "../log.ts";
import { announceRunning, settle } from "../settle.ts";
import { leaseMessage, ParamsRefused, type Prepared, prepare } from "./grants.ts";
import { disconnected, greet, isRevoked, mayGreet, restarted, revoke, seen, silent } from "./instances.ts";
import { answer, type Conversation, logLease, parseMessage } from "./messages.ts";
import { lookUpOffer } from "./offers.ts";
import { choose, nextDue } from "./policy.ts";
import type { DispatcherRpc, PoolView } from "./rpc.ts";
import { type Attachment, type CloseReason, RUNNER_TOKEN_HEADER, Sockets } from "./sockets.ts";
import * as store from "./store.ts";
import { Sweeper } from "./sweeper.ts";
import { type ExecutionRow, type LeaseRow, migrate } from "./tables.ts";
import { timesOf } from "./times.ts";
import { canTake, describeExecution, poolStatus } from "./views.ts";

/** How long an offer waits for others that it may be computed with, in milliseconds. */
const GATHER_MS = 30;
/** Least time to the next alarm after something failed in one, in milliseconds. */
const ALARM_PAUSE_MS = 1000;

/**
 * The only authority on a pool's executions until they are terminal: one object per pool, named after it.
 * All state is in SQLite (tables.ts), so that it survives hibernation, restarts and deployments; what is in memory only saves work.
 */
export class Dispatcher extends DurableObject<Env> implements DispatcherRpc {
  readonly #sql: SqlStorage;
  readonly #sockets: Sockets;
  readonly #settling = new Set<string>();
  readonly #sweeper = new Sweeper(() => ({
    env: this.env,
    sql: this.#sql,
    pool: this.#pool,
    abandon: executions => this.#abandon(executions),
    swept: () => this.#arm(),
  }));
  #alarmAt: number | undefined;
  #gathering: Promise<void> | undefined;

  constructor(ctx: DurableObjectState, env: Env) {
    super(ctx, env);
    this.#sql = ctx.storage.sql;
    this.#sockets = new Sockets(ctx);
    ctx.blockConcurrencyWhile(async () => {
      ctx.storage.transactionSync(() => migrate(this.#sql));
      restarted(this.#sql, this.#sockets.instances(), Date.now());
      // An alarm that was due while nothing ran may never fire: armed anew, whatever getAlarm() says.
      await this.#arm();
    });
  }

  get #pool(): string {
    const { name } = this.ctx.id;
    if (name === undefined) throw new Error("a dispatcher is addressed by the name of its pool");
    return name;
  }

  get #times() {
    return timesOf(settings(this.env));
  }

  // What the rest of the Worker asks (rpc.ts).

  async offer({ v, ...offer }: Parameters<DispatcherRpc["offer"]>[0]): ReturnType<DispatcherRpc["offer"]> {
    requireVersion(v);
    const known = store.knows(this.#sql, offer.execution);
    if (known) return known;
    const offered = await lookUpOffer(this.env, this.#pool, offer);
    if (typeof offered === "string") return offered;
    const enqueue = (now: number) => {
      this.#sweeper.runBy(now + settings(this.env).SWEEP_MS);
      return store.enqueue(this.#sql, offered);
    };
    const taken = offered.batch_key === "" ? this.#change(enqueue) : this.#changeAndGather(enqueue);
    const { execution, request_id } = offered;
    if (taken === "queued") log("info", "execution queued", { execution, request_id, pool: this.#pool });
    return taken;
  }

  async abandon({ v, executions }: Parameters<DispatcherRpc["abandon"]>[0]): Promise<void> {
    requireVersion(v);
    this.#abandon(executions);
  }

  async describe({ v, executions, models }: Parameters<DispatcherRpc["describe"]>[0]): Promise<PoolView> {
    requireVersion(v);
    return {
      executions: executions.map(execution => describeExecution(this.#sql, execution)),
      served: models.filter(model_hash => canTake(this.#sql, { model_hash, refiner_hash: "", kind: "picture" }, ENGINE_VERSION)),
    };
  }

  async holds({ v, execution, epoch, instance }: Parameters<DispatcherRpc["holds"]>[0]): Promise<boolean> {
    requireVersion(v);
    return store.currentLease(this.#sql, { execution, epoch }, instance) !== undefined;
  }

  async watch({ v, deadline_at }: Parameters<DispatcherRpc["watch"]>[0]): Promise<void> {
    requireVersion(v);
    this.#change(now => this.#sweeper.watch(deadline_at, now));
  }

  async revoke({ v, token }: Parameters<DispatcherRpc["revoke"]>[0]): Promise<void> {
    requireVersion(v);
    this.#change(now => {
      for (const ended of revoke(this.#sql, token, now, this.#times)) this.#tellEnded(ended);
    });
    this.#sockets.endToken(token);
    log("warn", "runner token revoked", { token, pool: this.#pool });
  }

  async sweep({ v }: Parameters<DispatcherRpc["sweep"]>[0]): Promise<PoolStatus> {
    requireVersion(v);
    await this.#sweeper.run();
    return poolStatus(this.#sql, this.#pool);
  }

  // Runner sockets.

  /** Upgrade request of a runner whose token the Worker has verified. */
  override async fetch(request: Request): Promise<Response> {
    const token = request.headers.get(RUNNER_TOKEN_HEADER);
    if (request.headers.get("upgrade") !== "websocket") return new Response(null, { status: 426 });
    if (!token || isRevoked(this.#sql, token)) return new Response(null, { status: 401 });
    return this.#sockets.accept(token);
  }

  override async webSocketMessage(socket: WebSocket, data: string | ArrayBuffer): Promise<void> {
    const attachment = this.#sockets.attachment(socket);
    if (!attachment || attachment.over) return;
    const message = parseMessage(data);
    if (typeof message === "string") {
      this.#refuse(socket, attachment, message);
      return;
    }
    try {
      this.#change(now => this.#receive(socket, attachment, message, now));
    } catch (error) {
      log("error", "a runner's message could not be handled", { type: message.type, instance: attachment.instance, ...errorFields(error) });
      this.#hangUp(socket, attachment, "internal", "internal", "the message could not be handled");
    }
  }

  override async webSocketClose(socket: WebSocket): Promise<void> {
    this.#gone(socket);
  }

  override async webSocketError(socket: WebSocket): Promise<void> {
    this.#gone(socket);
  }

  #receive(socket: WebSocket, attachment: Attachment, message: RunnerMessage, now: number): void {
    const { instance } = attachment;
    if (message.type === "hello") {
      this.#greet(socket, attachment, message, now);
    } else if (instance === null) {
      this.#refuse(socket, attachment, `expected hello first, got ${message.type}`);
    } else {
      seen(this.#sql, instance, now);
      answer(this.#conversation, instance, message, now);
    }
  }

  #greet(socket: WebSocket, attachment: Attachment, hello: Extract<RunnerMessage, { type: "hello" }>, now: number): void {
    const { instance, provider, engine_version } = hello;
    if (attachment.instance !== null && attachment.instance !== instance) {
      this.#refuse(socket, attachment, `expected one instance on a socket, ${attachment.instance}, got ${instance}`);
      return;
    }
    if (!mayGreet(this.#sql, instance, attachment.token)) {
      this.#hangUp(socket, attachment, "malformed", "forbidden", "this instance belongs to another runner token");
      return;
    }
    this.#sockets.bind(socket, attachment, instance);
    const { verdicts, ended, accepted } = greet(this.#sql, hello, attachment.token, now, this.#times);
    this.#sockets.send(instance, { v: PROTOCOL_VERSION, type: "welcome", heartbeat_ms: settings(this.env).HEARTBEAT_MS, leases: verdicts });
    for (const lease of ended) this.#tellEnded(lease);
    for (const lease of accepted) this.#conversation.running(lease);
    log("info", "runner connected", {
      instance,
      token: attachment.token,
      provider,
      engine_version,
      pool: this.#pool,
      leases: verdicts.length,
    });
  }

  get #conversation(): Conversation {
    return {
      sql: this.#sql,
      sockets: this.#sockets,
      times: this.#times,
      running: lease => this.ctx.waitUntil(announceRunning(this.env, lease)),
    };
  }

  #refuse(socket: WebSocket, attachment: Attachment, why: string): void {
    log("warn", "a runner's message was refused", { instance: attachment.instance, token: attachment.token, why });
    this.#hangUp(socket, attachment, "malformed", "invalid_request", why);
  }

  #hangUp(socket: WebSocket, { instance }: Attachment, reason: CloseReason, code: ErrorCode, message: string): void {
    this.#sockets.refuse(socket, reason, code, message);
    if (instance !== null && !this.#sockets.instances().includes(instance)) disconnected(this.#sql, instance);
  }

  #gone(socket: WebSocket): void {
    const instance = this.#sockets.attachment(socket)?.instance;
    this.#sockets.end(socket, "closed", "closed");
    if (!instance || this.#sockets.instances().includes(instance)) return;
    disconnected(this.#sql, instance);
    log("info", "runner disconnected", { instance, pool: this.#pool });
  }

  // What goes on by itself.

  /** Does what is due. Nothing is waited for that R2 or D1 may hold up, so that leases end in time whatever happens there. */
  override async alarm(): Promise<void> {
    let failed = false;
    const attempt = (what: string, work: () => void) => {
      try {
        work();
      } catch (error) {
        failed = true;
        log("error", `alarm: ${what} failed`, { pool: this.#pool, ...errorFields(error) });
      }
    };
    attempt("expiry", () => this.#change(now => this.#expire(now)));
    attempt("sweep", () => this.ctx.waitUntil(this.#sweeper.runIfDue(Date.now()) ?? Promise.resolve()));
    attempt("pruning", () => store.prune(this.#sql, Date.now()));
    // What was armed on the way may stand for what is done by now.
    this.#alarmAt = undefined;
    await this.#arm(failed ? ALARM_PAUSE_MS : 0);
  }

  #expire(now: number): void {
    for (const ended of store.expire(this.#sql, now, this.#times)) this.#tellEnded(ended);
    for (const instance of silent(this.#sql, now, this.#times)) {
      log("warn", "runner is silent", { instance, pool: this.#pool });
      this.#sockets.endInstance(instance, "silent", "no message for the time of a lease");
    }
  }

  /** Runs one synchronous change as a transaction, then does what it makes possible: settlements, grants, an earlier alarm. */
  #change<T>(change: (now: number) => T): T {
    const now = Date.now();
    const result = this.#changeOnly(change, now);
    this.#grant(now);
    this.ctx.waitUntil(this.#arm());
    return result;
  }

  /**
   * The same, but grants a moment later: the pictures of a generation are offered one by one, and an idle runner would take the first alone.
   * Nothing hangs on that moment: every message of a runner makes the grants that can be made.
   */
  #changeAndGather<T>(change: (now: number) => T): T {
    const result = this.#changeOnly(change, Date.now());
    this.#gathering ??= scheduler.wait(GATHER_MS).then(() => {
      this.#gathering = undefined;
      this.#change(() => {});
    });
    this.ctx.waitUntil(Promise.all([this.#gathering, this.#arm()]));
    return result;
  }

  #changeOnly<T>(change: (now: number) => T, now: number): T {
    const result = this.ctx.storage.transactionSync(() => change(now));
    for (const id of store.dueSettlements(this.#sql, now)) this.#settle(id);
    return result;
  }

  #abandon(executions: readonly string[]): void {
    this.#change(now => {
      for (const id of executions) for (const ended of store.abandon(this.#sql, id, now)) this.#tellEnded(ended);
    });
  }

  #tellEnded({ execution, epoch, instance, request_id, reason }: store.EndedLease): void {
    log(reason === "abandoned" ? "info" : "warn", "lease ended", { execution, epoch, instance, request_id, reason });
    this.#sockets.send(instance, { v: PROTOCOL_VERSION, type: "cancel", leases: [{ execution, epoch }] });
  }

  /** Grants whatever can be granted now. */
  #grant(now: number): void {
    const granted = this.ctx.storage.transactionSync(() => {
      const grants: LeaseRow[][] = [];
      for (let choice = choose(this.#sql, now, this.#times); choice; choice = choose(this.#sql, now, this.#times)) {
        grants.push(store.lease(this.#sql, choice, now, this.#times));
      }
      return grants;
    });
    for (const leases of granted) this.ctx.waitUntil(this.#deliver(leases));
  }

  /** Sends a grant. What fails on the way, fails silently for the runner: the grant isn't acknowledged, and so withdrawn. */
  async #deliver(leases: readonly LeaseRow[]): Promise<void> {
    const prepared = await Promise.all(leases.map(lease => this.#prepare(lease)));
    const isHeld = ({ lease }: Prepared) => store.currentLease(this.#sql, lease, lease.instance) !== undefined;
    const [first, ...others] = prepared.filter(execution => execution !== undefined).filter(isHeld);
    if (!first) return;
    try {
      const message = await leaseMessage(this.env, this.#pool, [first, ...others]);
      // What is over by now, the runner learns when it accepts.
      if (![first, ...others].some(isHeld)) return;
      this.#sockets.send(first.lease.instance, message);
      for (const { lease } of [first, ...others])
        logLease(this.#sql, "info", "lease granted", lease.instance, lease, { batch: 1 + others.length });
    } catch (error) {
      logLease(this.#sql, "error", "grant not made", first.lease.instance, first.lease, errorFields(error));
    }
  }

  /** Undefined for an execution that cannot be granted; the others of its batch can. */
  async #prepare(lease: LeaseRow): Promise<Prepared | undefined> {
    const { execution: id, instance } = lease;
    const execution = store.executionRow(this.#sql, id);
    if (!execution) return undefined;
    try {
      return await prepare(this.env, { execution, lease });
    } catch (error) {
      logLease(this.#sql, "error", "grant not made", instance, lease, errorFields(error));
      if (!(error instanceof ParamsRefused)) return undefined;
      const reason = { code: "internal", message: `The execution could not be granted: ${error.message}.` } as const;
      this.#change(now => store.failLeased(this.#sql, lease, reason, instance, now));
      return undefined;
    }
  }

  /** Brings a persisted outcome to D1. What fails is tried again by the alarm. */
  #settle(execution: string): void {
    // One that is still under way is put off all the same, or it would be due at every moment.
    const row = store.beginSettlement(this.#sql, execution, Date.now());
    if (!row || this.#settling.has(execution)) return;
    this.#settling.add(execution);
    const settling = this.#settleRow(row)
      .catch((error: unknown) => {
        const { request_id, settle_failures: failures } = row;
        log("error", "settlement failed; it will be tried again", {
          execution,
          request_id,
          pool: this.#pool,
          failures,
          ...errorFields(error),
        });
      })
      .finally(() => this.#settling.delete(execution));
    this.ctx.waitUntil(settling);
  }

  async #settleRow(row: ExecutionRow): Promise<void> {
    const { id: execution, epoch, winner, request_id, outcome } = row;
    const settlement = await settle(this.env, settleable(row));
    if (settlement.verdict === "refused") {
      log("warn", "result refused", { execution, epoch, request_id, reason: settlement.reason });
      this.#change(now => store.resultRefused(this.#sql, execution, settlement.reason, now, this.#times));
      if (winner) this.#sockets.send(winner, { v: PROTOCOL_VERSION, type: "refused", execution, epoch, reason: settlement.reason });
      return;
    }
    this.#change(now => store.settled(this.#sql, execution, now));
    if (winner) this.#sockets.send(winner, { v: PROTOCOL_VERSION, type: "committed", execution, epoch });
    log("info", "execution settled", { execution, epoch, request_id: request_id || settlement.request_id, outcome });
    if (settlement.abandoned.length > 0) this.#abandon(settlement.abandoned);
  }

  /** Sets the alarm to when something falls due; an alarm that comes too early only looks and sets the next. */
  async #arm(pause = 0): Promise<void> {
    const now = Date.now();
    const due = nextDue(this.#sql, now, this.#times);
    if (due === null) return;
    const at = Math.max(due, now + pause);
    if (this.#alarmAt !== undefined && this.#alarmAt <= at) return;
    this.#alarmAt = at;
    await this.ctx.storage.setAlarm(at);
  }
}

function settleable({ id, epoch, outcome, detail }: ExecutionRow): Parameters<typeof settle>[1] {
  if (outcome === "succeeded") return { execution: id, epoch, outcome, result: executionResultSchema.parse(JSON.parse(detail ?? "null")) };
  if (outcome === "failed") return { execution: id, epoch, outcome, error: jobErrorSchema.parse(JSON.parse(detail ?? "null")) };
  return { execution: id, epoch, outcome: "canceled" };
}

function requireVersion(v: number): void {
  if (v !== 1) throw new Error(`dispatcher: RPC version expected 1, got ${v}`);
}
