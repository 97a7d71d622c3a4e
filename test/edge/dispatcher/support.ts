import { runDurableObjectAlarm, runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { ulid } from "ulid";
import { RUNNER_TOKEN_HEADER } from "../../../edge/dispatcher/sockets.ts";
import type { Env } from "../../../edge/env.ts";
import { newId } from "../../../edge/ids.ts";
import type { ExecutionInputs } from "../../../edge/inputs.ts";
import { sha256Hex } from "../../../shared/canonical.ts";
import { ENGINE_VERSION, PROTOCOL_VERSION } from "../../../shared/engine.ts";
import { canonicalPictureRequest, type PictureRequest, plainPicture } from "../../../shared/picture.ts";
import { type DispatcherMessage, dispatcherMessageSchema, type RunnerMessage, stagingKey } from "../../../shared/protocol.ts";

/** What the dispatcher's tests stand on: rows as the API accepts them, a runner on a real socket, and files in the bucket. */

export const MODEL_HASH = `sha256:${"a".repeat(64)}`;

/** A pool of its own for each test, so that none sees another's object. */
export function newPool(): string {
  return `pool-${ulid().slice(-12).toLowerCase()}`;
}

export function dispatcherOf(pool: string) {
  return env.DISPATCHER.getByName(pool);
}

/** Runs a change on the dispatcher's own tables. */
export function withSql<T>(pool: string, work: (sql: SqlStorage) => T): Promise<T> {
  return runInDurableObject(dispatcherOf(pool), (_, { storage }) => work(storage.sql));
}

/** Lets a pool's dispatcher use other bindings from now on, until it is evicted. */
export async function replaceBindings(pool: string, bindings: Partial<Pick<Env, "DB" | "BUCKET">>): Promise<void> {
  await runInDurableObject(dispatcherOf(pool), instance => {
    Object.defineProperty(instance, "env", { value: { ...env, ...bindings }, configurable: true });
  });
}

/** A binding of which one method fails; the others are the real ones. */
export function failing<T extends object>(binding: T, method: keyof T & string): T {
  return new Proxy(binding, {
    get: (target, name) => {
      if (name === method) {
        return () => {
          throw new Error(`${method} is out of order`);
        };
      }
      const value: unknown = Reflect.get(target, name);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** Makes everything in the columns fall due, and lets the alarm see it. */
export async function fallDue(pool: string, table: "leases" | "executions" | "instances", column: string): Promise<void> {
  await withSql(pool, sql => sql.exec(`UPDATE ${table} SET ${column} = 0 WHERE ${column} IS NOT NULL`));
  await runInDurableObject(dispatcherOf(pool), (_, { storage }) => storage.setAlarm(Date.now() + 60_000));
  await runDurableObjectAlarm(dispatcherOf(pool));
}

export interface AcceptedJob {
  readonly job: string;
  readonly tenant: string;
  readonly executions: { id: string; params: string; params_sha256: string }[];
}

interface JobOptions {
  readonly tenant?: string;
  readonly pictures?: number;
  readonly deadlineAt?: number;
  readonly createdAt?: number;
  readonly modelHash?: string;
  readonly refinerHash?: string;
  /** '' : each alone. */
  readonly batchKey?: string;
  readonly inputs?: ExecutionInputs;
}

/** A job in D1 with an execution for each picture, as the API leaves it. */
export async function acceptJob(pool: string, options: JobOptions = {}): Promise<AcceptedJob> {
  const { tenant = newId("tenant"), pictures = 1, createdAt = Date.now(), modelHash = MODEL_HASH, refinerHash } = options;
  const refiner = refinerHash === undefined ? null : { model: refinerHash, switch_at: 0.8 };
  const { batchKey = "", inputs = { files: [], adapters: [] } } = options;
  const { deadlineAt = createdAt + 600_000 } = options;
  const job = newId("job");
  const executions = await Promise.all(
    Array.from({ length: pictures }, async (_, i) => {
      const params = canonicalPictureRequest({
        ...pictureRequest,
        model: modelHash,
        refiner,
        seed: Math.floor(Math.random() * 2 ** 31) + i,
      });
      return { id: newId("execution"), params, params_sha256: await sha256Hex(params) };
    }),
  );
  await env.DB.batch([
    env.DB.prepare(
      `INSERT INTO jobs (id, tenant_id, kind, pool, model_hash, request, request_id, status, created_at, deadline_at)
       VALUES (?, ?, 'generation', ?, ?, '{}', 'req_test', 'active', ?, ?)`,
    ).bind(job, tenant, pool, modelHash, createdAt, deadlineAt),
    ...executions.flatMap(({ id, params, params_sha256 }, i) => [
      env.DB.prepare(
        `INSERT INTO executions (id, tenant_id, pool, request_hash, params, params_sha256, model_hash, batch_key, inputs, exclusive, request_id, state, created_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 'req_test', 'active', ?)`,
      ).bind(id, tenant, pool, params_sha256, params, params_sha256, modelHash, batchKey, JSON.stringify(inputs), createdAt),
      env.DB.prepare(
        `INSERT INTO job_pictures (job_id, idx, tenant_id, seed, request_hash, execution_id, state, cached) VALUES (?, ?, ?, 1, ?, ?, 'pending', 0)`,
      ).bind(job, i, tenant, params_sha256, id),
    ]),
  ]);
  return { job, tenant, executions };
}

const pictureRequest: PictureRequest = {
  ...plainPicture,
  engine_version: ENGINE_VERSION,
  model: MODEL_HASH,
  prompt: "a red circle",
  width: 128,
  height: 128,
  steps: 2,
  guidance_scale: 5,
  seed: 1,
  sampler: "ddim",
};

/** Hands a job's executions to the dispatcher as the queue consumer does. */
export async function offer(pool: string, { tenant, executions }: AcceptedJob): Promise<string[]> {
  const answers: string[] = [];
  for (const { id, params_sha256 } of executions) {
    answers.push(await dispatcherOf(pool).offer({ v: 1, execution: id, tenant, params_sha256, request_id: "req_test" }));
  }
  return answers;
}

type Unversioned<M> = M extends unknown ? Omit<M, "v"> : never;
type Of<T extends DispatcherMessage["type"]> = Extract<DispatcherMessage, { type: T }>;

interface HelloOptions {
  readonly leases?: { execution: string; epoch: number }[];
  readonly models?: string[];
  readonly maxBatch?: number;
  readonly trains?: boolean;
}

/** A runner's side of a socket, with an inbox to wait on. */
export class TestRunner {
  readonly instance: string;
  readonly token: string;
  closed: number | undefined;
  readonly #socket: WebSocket;
  readonly #inbox: DispatcherMessage[] = [];
  readonly #waiting = new Set<() => void>();

  private constructor(socket: WebSocket, instance: string, token: string) {
    this.instance = instance;
    this.token = token;
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => {
      this.#inbox.push(dispatcherMessageSchema.parse(JSON.parse(String(data))));
      this.#wake();
    });
    socket.addEventListener("close", ({ code }) => {
      this.closed = code;
      this.#wake();
    });
    socket.accept();
  }

  /** Opens a socket as the Worker forwards it. */
  static async open(pool: string, { instance = newId("instance"), token = newId("runnerToken") } = {}): Promise<TestRunner> {
    const response = await dispatcherOf(pool).fetch("https://dispatcher/runner/v1/socket", {
      headers: { upgrade: "websocket", [RUNNER_TOKEN_HEADER]: token },
    });
    if (!response.webSocket) throw new Error(`expected a socket, got ${response.status}`);
    return new TestRunner(response.webSocket, instance, token);
  }

  /** Opens a socket, says hello, and takes `ready` executions. */
  static async connect(
    pool: string,
    options: HelloOptions & { instance?: string; token?: string; ready?: number; resident?: string[] } = {},
  ): Promise<TestRunner> {
    const runner = await TestRunner.open(pool, options);
    runner.hello(options);
    await runner.next("welcome");
    if (options.ready) runner.say({ type: "ready", n: options.ready, resident: options.resident ?? [] });
    return runner;
  }

  hello({ leases = [], models = [MODEL_HASH], maxBatch = 1, trains = false }: HelloOptions = {}): void {
    const { instance } = this;
    this.say({ type: "hello", instance, engine_version: ENGINE_VERSION, provider: "cpu", models, max_batch: maxBatch, trains, leases });
  }

  say(message: Unversioned<RunnerMessage>): void {
    this.raw(JSON.stringify({ v: PROTOCOL_VERSION, ...message }));
  }

  raw(text: string | ArrayBuffer): void {
    this.#socket.send(text);
  }

  close(): void {
    this.#socket.close(1000, "test");
  }

  /** The next message of this type; others stay for whoever waits for them. */
  async next<T extends DispatcherMessage["type"]>(type: T, timeoutMs = 5000): Promise<Of<T>> {
    const find = () => this.#inbox.findIndex(message => message.type === type);
    await this.#until(() => find() >= 0, `a message ${type}`, timeoutMs);
    return this.#inbox.splice(find(), 1)[0] as Of<T>;
  }

  async untilClosed(): Promise<number> {
    await this.#until(() => this.closed !== undefined, "the end of the socket", 5000);
    return this.closed!;
  }

  /** Waits for a grant and accepts it. */
  async acceptLease(): Promise<{ execution: string; epoch: number; params: string; grant: string }> {
    const { executions, grant } = await this.next("lease");
    const { execution, epoch, params } = executions[0]!;
    this.say({ type: "accept", leases: [{ execution, epoch }] });
    return { execution, epoch, params, grant };
  }

  /** Accepts all of the next grant. */
  async acceptBatch(): Promise<Of<"lease">> {
    const message = await this.next("lease");
    this.say({ type: "accept", leases: message.executions.map(({ execution, epoch }) => ({ execution, epoch })) });
    return message;
  }

  /** How many messages of a type lie unread. */
  unread(type: DispatcherMessage["type"]): number {
    return this.#inbox.filter(message => message.type === type).length;
  }

  async #until(condition: () => boolean, what: string, timeoutMs: number): Promise<void> {
    const end = Date.now() + timeoutMs;
    while (!condition()) {
      const left = end - Date.now();
      if (left <= 0)
        throw new Error(`waited ${timeoutMs} ms for ${what}; unread: ${this.#inbox.map(({ type }) => type).join(", ") || "nothing"}`);
      await new Promise<void>(resolve => {
        const done = () => {
          clearTimeout(timer);
          this.#waiting.delete(done);
          resolve();
        };
        const timer = setTimeout(done, left);
        this.#waiting.add(done);
      });
    }
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
  }
}

/** Bytes that begin like a PNG, different for each text. */
export function pngBytes(text: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, ...new TextEncoder().encode(text)]);
}

/** Puts a result where the upload route puts it, and returns what a runner says of it. */
export async function stage({ execution, epoch }: { execution: string; epoch: number }, bytes = pngBytes(`${execution} ${epoch}`)) {
  const sha256 = await sha256Hex(bytes);
  await env.BUCKET.put(stagingKey(execution, epoch), bytes, { sha256, httpMetadata: { contentType: "image/png" } });
  return { sha256, bytes: bytes.byteLength, width: 128, height: 128 };
}

/** A row of D1. */
export function row<T>(query: string, ...values: unknown[]): Promise<T | null> {
  return env.DB.prepare(query)
    .bind(...values)
    .first<T>();
}

export async function jobStatus(job: string): Promise<{ status: string; error: { code: string; message: string } | null }> {
  const found = await row<{ status: string; error: string | null }>("SELECT status, error FROM jobs WHERE id = ?", job);
  return { status: found?.status ?? "none", error: found?.error ? JSON.parse(found.error) : null };
}

export async function executionState(execution: string): Promise<string | undefined> {
  return (await row<{ state: string }>("SELECT state FROM executions WHERE id = ?", execution))?.state;
}

/** Waits until a condition holds. */
export async function until(condition: () => Promise<boolean>, what: string, timeoutMs = 5000): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`waited ${timeoutMs} ms for ${what}`);
    await new Promise(resolve => setTimeout(resolve, 20));
  }
}
