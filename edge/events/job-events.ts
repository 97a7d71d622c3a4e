import { DurableObject } from "cloudflare:workers";
import type { JobEventsRpc } from "../dispatcher/rpc.ts";
import type { Env } from "../env.ts";
import { errorFields, log } from "../log.ts";
import { readEnd } from "./ended-job.ts";
import { EventStore, type PictureProgress } from "./event-store.ts";
import { eventStream, lastEventId, type StreamTimes } from "./stream.ts";

/** How long events stay after the job's end, in milliseconds. */
export const KEEP_EVENTS_MS = 24 * 3_600_000;

/** Times in milliseconds; tests shorten them. */
interface EventTimes extends StreamTimes {
  /** How often `wait` looks into D1. */
  readonly recover_ms: number;
}

/** What a job's clients follow: progress, previews and the end. One object per job, named after it. */
export class JobEvents extends DurableObject<Env> implements JobEventsRpc {
  times: EventTimes = { comment_ms: 15_000, stream_ms: 600_000, retry_ms: 2_000, recover_ms: 3_000 };
  #store: EventStore | undefined;
  readonly #listeners = new Set<() => void>();

  async append({ v, job, events }: Parameters<JobEventsRpc["append"]>[0]): Promise<void> {
    const store = await this.#open(v, job);
    await this.#append(store, events, new Date().toISOString());
  }

  async progress({ v, job }: Parameters<JobEventsRpc["progress"]>[0]): Promise<PictureProgress[]> {
    return (await this.#open(v, job)).progress();
  }

  async wait({ v, job, timeout_ms }: Parameters<JobEventsRpc["wait"]>[0]): Promise<void> {
    const store = await this.#open(v, job);
    const end = Date.now() + timeout_ms;
    let quiet = true;
    for (;;) {
      // Only silence is a reason to ask D1: a job whose end got lost makes no more progress.
      if (quiet && !(await this.#recover(store, job))) return;
      if (store.ended()) return;
      const left = end - Date.now();
      if (left <= 0) return;
      quiet = !(await this.#changed(Math.min(this.times.recover_ms, left)));
    }
  }

  /** The stream of a job's events: `GET /{job}`, resumed after `Last-Event-ID`. 204 where the client has seen the end. */
  override async fetch(request: Request): Promise<Response> {
    const job = new URL(request.url).pathname.slice(1);
    const store = await this.#open(1, job);
    if (!(await this.#recover(store, job))) return new Response(null, { status: 404 });
    const seen = lastEventId(request.headers.get("last-event-id"));
    const last = store.last();
    if (store.ended() && seen === last) return new Response(null, { status: 204 });
    const followed = {
      after: (id: number) => store.after(id),
      changed: (ms: number) => this.#changed(ms),
      recover: async () => void (await this.#recover(store, job)),
    };
    // A number beyond the last one was given out by events that are deleted since: start over.
    return eventStream(followed, seen > last ? 0 : seen, this.times);
  }

  /** Deletes everything a day after the end. A job that still runs by then keeps its events for another day. */
  override async alarm(): Promise<void> {
    const job = this.ctx.storage.kv.get<string>("job");
    if (job !== undefined && !new EventStore(this.ctx.storage.sql).ended() && (await this.#askD1(job)) === "active") {
      return this.#expireAt(Date.now() + KEEP_EVENTS_MS);
    }
    this.#store = undefined;
    await this.ctx.storage.deleteAll();
  }

  /** Streams and waits that are open now. */
  get following(): number {
    return this.#listeners.size;
  }

  async #open(v: number, job: string): Promise<EventStore> {
    if (v !== 1) throw new Error(`job events: version ${v} is not known, expected 1`);
    if (!this.#store) {
      if (this.ctx.storage.kv.get("job") === undefined) this.ctx.storage.kv.put("job", job);
      // Set at every start, not only at the first: a past-due alarm may be lost in a restart.
      await this.#expireAt(this.ctx.storage.kv.get<number>("expires_at") ?? Date.now() + KEEP_EVENTS_MS);
      this.#store = new EventStore(this.ctx.storage.sql);
    }
    const owner = this.ctx.storage.kv.get<string>("job");
    if (owner !== job) throw new Error(`job events: this object belongs to ${owner}, got a message for ${job}`);
    return this.#store;
  }

  async #expireAt(time: number): Promise<void> {
    this.ctx.storage.kv.put("expires_at", time);
    await this.ctx.storage.setAlarm(time);
  }

  async #append(store: EventStore, events: readonly unknown[], at: string): Promise<void> {
    const before = store.ended();
    store.append(events, at);
    if (!before && store.ended()) await this.#expireAt(Date.now() + KEEP_EVENTS_MS);
    for (const wake of [...this.#listeners]) wake();
  }

  /** Appends the end that D1 knows of, where its notification was lost. False when D1 knows no such job. */
  async #recover(store: EventStore, job: string): Promise<boolean> {
    if (store.ended()) return true;
    const end = await this.#askD1(job);
    if (typeof end !== "string") await this.#append(store, [end], end.at);
    return end !== "unknown";
  }

  /** How the job ended, after D1. A job of which D1 cannot be asked now counts as active: the next look will tell. */
  async #askD1(job: string): ReturnType<typeof readEnd> {
    try {
      return await readEnd(this.env, job);
    } catch (error) {
      log("warn", "job events could not ask D1; trying again later", { job, ...errorFields(error) });
      return "active";
    }
  }

  /** Resolves with true at the next append, with false after `ms`. */
  #changed(ms: number): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const timer = setTimeout(() => resolve(false), ms);
    const wake = () => resolve(true);
    this.#listeners.add(wake);
    return promise.finally(() => {
      clearTimeout(timer);
      this.#listeners.delete(wake);
    });
  }
}
