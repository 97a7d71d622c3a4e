import type { z } from "zod";
import type { AdapterView } from "../shared/adapter-resource.ts";
import type { ErrorCode, Problem } from "../shared/errors.ts";
import type { generationRequestSchema } from "../shared/generation.ts";
import type { AnyJobView, GenerationView, JobEvent, JobView } from "../shared/job.ts";
import type { ModelView } from "../shared/model.ts";
import type { DatasetView, TrainingView } from "../shared/training-api.ts";
import type { UploadView } from "../shared/upload.ts";
import { Adapters } from "./adapters.ts";
import { Datasets } from "./datasets.ts";
import { readSse } from "./sse.ts";
import { type TrainingRequest, Trainings } from "./trainings.ts";
import type { Call, CallOptions, Transport } from "./transport.ts";
import { Uploads } from "./uploads.ts";

/** The client of Atelier's API for servers and browsers: fetch and nothing else at run time. */

export type GenerationRequest = z.input<typeof generationRequestSchema>;
export type {
  AdapterView,
  AnyJobView,
  CallOptions,
  DatasetView,
  GenerationView,
  JobEvent,
  JobView,
  ModelView,
  Problem,
  TrainingRequest,
  TrainingView,
  UploadView,
};

export interface AtelierOptions {
  /** Where the API is, for example `https://atelier.example`. */
  readonly baseUrl: string;
  /** `atl_…` */
  readonly apiKey: string;
  /** Another fetch, for tests and proxies. */
  readonly fetch?: (url: string, init: RequestInit) => Promise<Response>;
  /** How often a request is repeated when the network or the service fails. */
  readonly maxRetries?: number;
}

export interface GenerateOptions extends CallOptions {
  /** Repeats with the same key make nothing twice; made up for each call where it is absent. */
  readonly idempotencyKey?: string;
  readonly onEvent?: (event: NumberedEvent) => void;
}

/** An event of a job, with the number after which a stream can be resumed. */
export type NumberedEvent = JobEvent & { readonly id: string };

export interface GenerationPage {
  readonly data: GenerationView[];
  readonly next_cursor: string | null;
}

/** What the API answers in place of a result: an RFC 9457 problem document with a stable `code`. */
export class AtelierProblem extends Error {
  override readonly name = "AtelierProblem";
  readonly problem: Problem;
  /** Seconds after which the service asks to try again. */
  readonly retryAfter: number | undefined;

  constructor(problem: Problem, retryAfter?: number) {
    const fields = problem.errors?.map(
      ({ field, expected, got }) => `${field}: expected ${expected}${got === undefined ? "" : `, got ${got}`}`,
    );
    super([problem.detail ?? problem.title, ...(fields ?? [])].join(" "));
    this.problem = problem;
    this.retryAfter = retryAfter;
  }

  get code(): ErrorCode {
    return this.problem.code;
  }
}

const terminal = ["succeeded", "failed", "canceled"] as const satisfies readonly JobEvent["type"][];
const eventTypes: readonly string[] = [
  ...["queued", "running", "progress", "picture"],
  ...["phase", "step", "validation", "sample"],
  ...terminal,
] satisfies readonly string[];
const RECONNECT_MS = 1000;

export class Atelier {
  readonly #options: AtelierOptions;
  readonly uploads: Uploads;
  readonly adapters: Adapters;
  readonly datasets: Datasets;
  readonly trainings: Trainings;

  constructor(options: AtelierOptions) {
    this.#options = options;
    const transport: Transport = { json: (path, call) => this.#json(path, call), send: (path, call) => this.#send(path, call) };
    this.uploads = new Uploads(transport);
    this.adapters = new Adapters(transport, problem => new AtelierProblem(problem));
    this.datasets = new Datasets(transport);
    this.trainings = new Trainings(transport);
  }

  /**
   * Makes pictures and resolves when they are there, or when the job was canceled.
   * @throws AtelierProblem where the request is refused or the job fails
   */
  async generate(request: GenerationRequest, options: GenerateOptions = {}): Promise<GenerationView> {
    const started = await this.start(request, options);
    if (started.object === "generation") return succeeded(started);
    for await (const event of this.events(started.id, options)) options.onEvent?.(event);
    return succeeded(await this.get(started.generation, options));
  }

  /** Accepts a generation: itself where every picture comes from the cache, else the job that makes it. */
  async start(
    request: GenerationRequest,
    { idempotencyKey = crypto.randomUUID(), signal }: GenerateOptions = {},
  ): Promise<GenerationView | JobView> {
    return this.#json("/v1/generations", {
      method: "POST",
      json: request,
      headers: { "idempotency-key": idempotencyKey },
      ...(signal && { signal }),
    });
  }

  /** A generation by its id `gen_…`. */
  get(id: string, options: CallOptions = {}): Promise<GenerationView> {
    return this.#json(`/v1/generations/${encodeURIComponent(id)}`, options);
  }

  /** A page of generations, newest first; `cursor` is the `next_cursor` of the page before. */
  list({ limit, cursor, ...options }: CallOptions & { limit?: number; cursor?: string } = {}): Promise<GenerationPage> {
    const query = new URLSearchParams({ ...(limit !== undefined && { limit: String(limit) }), ...(cursor !== undefined && { cursor }) });
    return this.#json(`/v1/generations?${query}`, options);
  }

  /** Deletes a generation, and its pictures where no other generation shows them. */
  async delete(id: string, options: CallOptions = {}): Promise<void> {
    await this.#send(`/v1/generations/${encodeURIComponent(id)}`, { ...options, method: "DELETE" });
  }

  /** A job by its id `job_…`: of a generation or of a training. */
  job(id: string, options: CallOptions = {}): Promise<AnyJobView> {
    return this.#json(`/v1/jobs/${encodeURIComponent(id)}`, options);
  }

  /** Cancels a job. One that has ended stays as it is. */
  cancel(job: string, options: CallOptions = {}): Promise<AnyJobView> {
    return this.#json(`/v1/jobs/${encodeURIComponent(job)}/cancel`, { ...options, method: "POST" });
  }

  /** The file of a picture `pic_…`. */
  async picture(id: string, options: CallOptions = {}): Promise<Blob> {
    return (await this.#send(`/v1/pictures/${encodeURIComponent(id)}`, options)).blob();
  }

  async models(options: CallOptions = {}): Promise<ModelView[]> {
    return (await this.#json<{ data: ModelView[] }>("/v1/models", options)).data;
  }

  /**
   * A job's events until its end. Connects again where a stream breaks off or its time is over, and goes on after the last event.
   * @param options.lastEventId number of the last event that was seen
   */
  async *events(
    job: string,
    { lastEventId, signal }: CallOptions & { lastEventId?: string } = {},
  ): AsyncGenerator<NumberedEvent, void, void> {
    let seen = lastEventId;
    let pause = RECONNECT_MS;
    for (;;) {
      const headers = { accept: "text/event-stream", ...(seen !== undefined && { "last-event-id": seen }) };
      const response = await this.#send(`/v1/jobs/${encodeURIComponent(job)}/events`, { headers, ...(signal && { signal }) });
      if (response.status === 204 || response.body === null) return;
      for await (const { id, event: type, data, retry } of readSse(response.body)) {
        pause = retry ?? pause;
        seen = id ?? seen;
        // A type that this version doesn't know is no reason to stop.
        if (id === undefined || !eventTypes.includes(type)) continue;
        const event: NumberedEvent = { ...(JSON.parse(data) as JobEvent), id };
        yield event;
        if (terminal.some(end => end === event.type)) return;
      }
      await delay(pause, signal);
    }
  }

  async #json<T>(path: string, call: Call): Promise<T> {
    return (await (await this.#send(path, call)).json()) as T;
  }

  /** Sends a request, again where the network or the service fails: everything here is safe to send twice. @throws AtelierProblem */
  async #send(path: string, call: Call): Promise<Response> {
    const { baseUrl, maxRetries = 3 } = this.#options;
    const url = new URL(path, baseUrl).href;
    for (let attempt = 0; ; attempt++) {
      const answer = await this.#sendOnce(url, call);
      if (answer instanceof Response) return answer;
      call.signal?.throwIfAborted();
      if (attempt >= maxRetries || !isPassing(answer)) throw answer;
      const seconds = (answer instanceof AtelierProblem ? answer.retryAfter : undefined) ?? 0.25 * 2 ** attempt;
      await delay(seconds * 1000, call.signal);
    }
  }

  /** The answer, or what is in its place: the service's problem, or the network's error. */
  async #sendOnce(url: string, { method = "GET", json, file, form, headers, signal }: Call): Promise<Response | Error> {
    const { apiKey, fetch: send = (to, init) => fetch(to, init) } = this.#options;
    try {
      const response = await send(url, {
        method,
        headers: { authorization: `Bearer ${apiKey}`, ...(json !== undefined && { "content-type": "application/json" }), ...headers },
        ...(json !== undefined && { body: JSON.stringify(json) }),
        ...(file && { body: file }),
        ...(form && { body: form }),
        ...(signal && { signal }),
      });
      return response.ok ? response : await readProblem(response);
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    }
  }
}

/** Errors that pass by themselves: the network's, too many requests, a part that cannot be reached, an equal request that is being answered. */
function isPassing(error: Error): boolean {
  if (!(error instanceof AtelierProblem)) return true;
  return [429, 502, 503].includes(error.problem.status) || error.code === "idempotency_in_flight";
}

async function readProblem(response: Response): Promise<AtelierProblem> {
  const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
  const body: unknown = await response.json().catch(() => undefined);
  return new AtelierProblem(isProblem(body) ? body : foreignProblem(response), Number.isFinite(seconds) ? seconds : undefined);
}

function isProblem(body: unknown): body is Problem {
  return typeof body === "object" && body !== null && "code" in body && "status" in body && "title" in body;
}

/** What something between us and the API has answered. */
function foreignProblem({ status, statusText }: Response): Problem {
  return { type: "about:blank", title: statusText || `HTTP ${status}`, status, code: status >= 500 ? "unavailable" : "invalid_request" };
}

function succeeded(generation: GenerationView): GenerationView {
  if (generation.error) throw new AtelierProblem(generation.error);
  return generation;
}

function delay(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}
