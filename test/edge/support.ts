import { env } from "cloudflare:workers";
import { ulid } from "ulid";
import { expect } from "vitest";
import { app } from "../../edge/app.ts";
import { createApiKey, type Scope } from "../../edge/auth.ts";
import { type Env, settings } from "../../edge/env.ts";
import { settle } from "../../edge/settle.ts";
import { sha256Hex } from "../../shared/canonical.ts";
import { type GenerationView, generationViewSchema, type JobView, jobViewSchema } from "../../shared/job.ts";
import type { ModelManifest } from "../../shared/model.ts";
import { sameUlid } from "../../shared/names.ts";
import { stagingKey } from "../../shared/protocol.ts";
import { pngFile } from "./file-bytes.ts";

export const pocket: ModelManifest = {
  name: "pocket",
  hash: `sha256:${"a".repeat(64)}`,
  pool: "default",
  family: "sd1",
  tasks: ["text-to-image", "image-to-image", "inpaint"],
  prediction_type: "v_prediction",
  parameters: 5_000_000,
  cross_attention_dim: 96,
  text_widths: [96],
  size_multiple: 8,
  min_size: 32,
  max_size: 512,
  max_prompt_tokens: 38,
  max_clip_skip: 1,
  defaults: {
    width: 128,
    height: 96,
    steps: 20,
    guidance_scale: 3,
    guidance_rescale: 0.5,
    sampler: "euler",
    sampler_options: {},
    clip_skip: 0,
  },
};

export interface CallInit extends RequestInit {
  key?: string;
  json?: unknown;
  env?: Env;
}

/** Calls the Worker as a client does. */
export async function call(path: string, init: CallInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (init.key !== undefined) headers.set("authorization", `Bearer ${init.key}`);
  if (init.json !== undefined) headers.set("content-type", "application/json");
  return app.request(path, { ...init, headers, ...(init.json !== undefined && { body: JSON.stringify(init.json) }) }, init.env ?? env);
}

export function callAdmin(path: string, init: CallInit = {}): Promise<Response> {
  return call(`/admin/v1/${path}`, { ...init, key: settings(env).ADMIN_TOKEN });
}

/** A key of a new tenant. */
export function newKey(scopes: readonly Scope[] = ["read", "write"]) {
  return createApiKey(env, { tenant: `tenant ${ulid()}`, name: "test", scopes });
}

export async function registerModel(changes: Partial<ModelManifest> = {}): Promise<ModelManifest> {
  const { name, ...manifest } = { ...pocket, ...changes };
  expect((await callAdmin(`models/${name}`, { method: "PUT", json: manifest })).status).toBe(200);
  return { name, ...manifest };
}

/** Posts a generation that has to be accepted or answered. */
export async function generate(
  key: string,
  request: Record<string, unknown>,
  init: CallInit = {},
): Promise<{ answer: Response; body: GenerationView | JobView }> {
  const answer = await call("/v1/generations", { ...init, method: "POST", key, json: { prompt: "a red cube", ...request } });
  const body: unknown = await answer.json();
  expect([201, 202], JSON.stringify(body)).toContain(answer.status);
  return { answer, body: answer.status === 201 ? generationViewSchema.parse(body) : jobViewSchema.parse(body) };
}

/** Posts a generation of which something has to be computed. */
export async function generateMiss(key: string, request: Record<string, unknown>, init: CallInit = {}): Promise<JobView> {
  const { body } = await generate(key, request, init);
  if (body.object !== "job") throw new Error("expected a miss, and all came from the cache");
  return body;
}

/** Posts a generation whose pictures all have to come from the cache. */
export async function generateHit(key: string, request: Record<string, unknown>, init: CallInit = {}): Promise<GenerationView> {
  const { body } = await generate(key, request, init);
  if (body.object !== "generation") throw new Error("expected a hit, and something is computed");
  return body;
}

export async function readGeneration(key: string, id: string): Promise<GenerationView> {
  const answer = await call(`/v1/generations/${sameUlid(id, "generation")}`, { key });
  expect(answer.status).toBe(200);
  return generationViewSchema.parse(await answer.json());
}

export async function waitingExecutions(job: string): Promise<string[]> {
  const { results } = await env.DB.prepare("SELECT execution_id FROM job_pictures WHERE job_id = ? AND state = 'pending' ORDER BY idx")
    .bind(job)
    .all<{ execution_id: string }>();
  return results.map(row => row.execution_id);
}

/** Does what a runner and the dispatcher do: uploads a file for every waiting picture of a job, `scale` times its size, and commits it. */
export async function compute(job: string, scale = 1): Promise<void> {
  for (const execution of await waitingExecutions(job)) await commit(execution, scale);
}

export async function commit(execution: string, scale = 1): Promise<void> {
  const row = await env.DB.prepare(
    "SELECT json_extract(params, '$.width') width, json_extract(params, '$.height') height FROM executions WHERE id = ?",
  )
    .bind(execution)
    .first<{ width: number; height: number }>();
  const [width, height] = [row!.width * scale, row!.height * scale];
  const file = pngFile(width, height, `the picture of ${execution}`);
  const sha256 = await sha256Hex(file);
  await env.BUCKET.put(stagingKey(execution, 1), file, { sha256, httpMetadata: { contentType: "image/png" } });
  await settle(env, {
    execution,
    epoch: 1,
    outcome: "succeeded",
    result: { sha256, bytes: file.length, width, height },
  });
}

export interface Traffic {
  /** Round trips to D1, a batch counting once. */
  d1: number;
  r2: string[];
  /** Offers sent to the queue. */
  offers: string[];
  /** Durable Objects that were asked for. */
  objects: string[];
}

/** The Worker's environment with a count of what passes through it. */
export function counted(): { env: Env; traffic: Traffic } {
  const traffic: Traffic = { d1: 0, r2: [], offers: [], objects: [] };
  const watched = <T extends object>(target: T, seen: (method: string, args: unknown[]) => void): T =>
    new Proxy(target, {
      get(object, property) {
        const value: unknown = Reflect.get(object, property);
        if (typeof value !== "function") return value;
        return (...args: unknown[]) => {
          seen(String(property), args);
          return Reflect.apply(value, object, args);
        };
      },
    });
  return {
    traffic,
    env: {
      ...env,
      DB: countedDatabase(traffic),
      BUCKET: watched(env.BUCKET, method => traffic.r2.push(method)),
      OFFERS: watched(env.OFFERS, (_, [messages]) =>
        traffic.offers.push(...(messages as { body: { offer: string } }[]).map(({ body }) => body.offer)),
      ),
      DISPATCHER: watched(env.DISPATCHER, (_, [name]) => traffic.objects.push(`dispatcher ${name}`)),
      JOB_EVENTS: watched(env.JOB_EVENTS, (_, [name]) => traffic.objects.push(`events ${name}`)),
    },
  };
}

function countedDatabase(traffic: Traffic): D1Database {
  const originals = new WeakMap<object, D1PreparedStatement>();
  const wrap = (statement: D1PreparedStatement): D1PreparedStatement => {
    const proxy = new Proxy(statement, {
      get(target, property) {
        const value: unknown = Reflect.get(target, property);
        if (typeof value !== "function") return value;
        return (...args: unknown[]) => {
          const result: unknown = Reflect.apply(value, target, args);
          if (property === "bind") return wrap(result as D1PreparedStatement);
          traffic.d1++;
          return result;
        };
      },
    });
    originals.set(proxy, statement);
    return proxy;
  };
  return new Proxy(env.DB, {
    get(target, property) {
      if (property === "prepare") return (query: string) => wrap(target.prepare(query));
      if (property === "batch") {
        return (statements: D1PreparedStatement[]) => {
          traffic.d1++;
          return target.batch(statements.map(statement => originals.get(statement) ?? statement));
        };
      }
      throw new Error(`unexpected use of D1: ${String(property)}`);
    },
  });
}
