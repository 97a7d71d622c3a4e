import type { PoolStatus } from "../../shared/admin.ts";

/**
 * What the rest of the Worker may ask of a pool's dispatcher (Durable Object RPC). A new Worker can meet an old object for minutes,
 * so every method takes one versioned object; an object that doesn't know the version throws.
 */
export interface DispatcherRpc {
  /** A verified offer. `known` and `tombstoned` are no-ops; `altered` when the parameters in D1 don't have the hash that was signed; `gone` when D1 has no live row. */
  offer(message: {
    v: 1;
    execution: string;
    tenant: string;
    params_sha256: string;
    request_id: string;
  }): Promise<"queued" | "known" | "tombstoned" | "altered" | "gone">;
  /** These executions are `abandoned` in D1: no job waits. Commit beats cancel. Unknown ids leave a tombstone. */
  abandon(message: { v: 1; executions: string[] }): Promise<void>;
  /** Live state of executions, and which of these models (content hashes) a connected runner can take, for clients. */
  describe(message: { v: 1; executions: string[]; models: string[] }): Promise<PoolView>;
  /** Whether this lease is the current one of its execution and held by this instance: uploads and progress ask before they take anything. */
  holds(message: { v: 1; execution: string; epoch: number; instance: string }): Promise<boolean>;
  /** A job with this deadline (ms since 1970) was accepted: the sweep has to run by then. Also wakes the object. */
  watch(message: { v: 1; deadline_at: number }): Promise<void>;
  /** A runner token was revoked: its sockets are closed and its leases end. */
  revoke(message: { v: 1; token: string }): Promise<void>;
  /** Wakes the object, sweeps at once, and tells what it sees. */
  sweep(message: { v: 1 }): Promise<PoolStatus>;
}

export interface ExecutionView {
  execution: string;
  state: "unknown" | "queued" | "running" | "committing" | "done";
  /** Executions before this one, where queued. */
  position: number | null;
  /** Queued, and no runner connected now can take it: it needs a refiner besides its model, say. null where the execution is unknown. */
  no_runner: boolean | null;
  epoch: number;
}
export interface PoolView {
  executions: ExecutionView[];
  /** The models among those asked for that a runner connected now can take. */
  served: string[];
}
/** What the rest of the Worker may ask of a job's events object. */
export interface JobEventsRpc {
  /** Appends events (shared/job.ts, without `at`). Bounded: old progress events give way first. A terminal event ends every stream and schedules deletion. */
  append(message: { v: 1; job: string; events: unknown[] }): Promise<void>;
  /** Latest progress per picture index. */
  progress(message: { v: 1; job: string }): Promise<{ index: number; step: number; steps: number }[]>;
  /** Resolves when the job is terminal or after `timeout_ms`. Survives a missed event by looking into D1 now and then. */
  wait(message: { v: 1; job: string; timeout_ms: number }): Promise<void>;
}
