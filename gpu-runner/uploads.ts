import { createHash } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { begunUploadSchema, PART_BYTES, type TakenPart, takenPartSchema } from "../shared/file-parts.ts";
import { parseJson } from "../shared/json.ts";
import { runnerPaths, stagingKey } from "../shared/protocol.ts";
import { type Backoff, backoffMs } from "./backoff.ts";
import type { HeldLease } from "./leases.ts";
import type { Picture } from "./pipeline/context.ts";

export interface UploadOptions {
  edgeUrl: URL;
  /** Most time of one attempt, in milliseconds. */
  timeoutMs: number;
  backoff: Backoff;
  /** Bytes of a part; a file that is larger goes in parts of that size. */
  partBytes?: number;
  /** Called before each attempt after the first, with what went wrong. */
  onRetry?: (problem: string) => void;
}

export const uploadDefaults = { timeoutMs: 60_000, backoff: { baseMs: 250, capMs: 10_000 } } as const;

/** The edge said no for good. `status` is its HTTP status, or 0 where the attempt's deadline came first. */
export class UploadRefused extends Error {
  override readonly name = "UploadRefused";
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/**
 * Uploads a result to its lease's staging key under the grant's capability. Network errors, time-outs, 408, 429, 422 (damaged on the way) and
 * 5xx are tried again until the attempt's deadline; `stale` when the edge says that the lease is over (409).
 * @throws UploadRefused; an AbortError when the lease ends meanwhile.
 */
export function uploadResult(
  lease: HeldLease,
  { bytes, sha256, mediaType }: Picture,
  options: UploadOptions,
): Promise<"uploaded" | "stale"> {
  const { execution, epoch, capabilities } = lease;
  return upload(lease, { key: stagingKey(execution, epoch), capability: capabilities.result, mediaType, sha256, body: bytes }, options);
}

/** Something to be put at an object key. */
export interface Upload {
  key: string;
  capability: string;
  mediaType: string;
  sha256: string;
  body: Uint8Array<ArrayBuffer> | Blob;
}

/** As `uploadResult`, of anything; what is larger than a part goes in parts. */
export async function upload(lease: HeldLease, file: Upload, options: UploadOptions): Promise<"uploaded" | "stale"> {
  const { key, capability, mediaType, sha256, body } = file;
  const path = runnerPaths.object(key);
  const { partBytes = PART_BYTES } = options;
  if (body instanceof Blob && body.size > partBytes) return uploadInParts(lease, { ...file, body }, partBytes, options);
  const headers = { "content-type": mediaType, "x-atelier-sha256": sha256 };
  return (await send(lease, { method: "PUT", path, capability, headers, body }, options)) === "stale" ? "stale" : "uploaded";
}

async function uploadInParts(
  lease: HeldLease,
  { key, capability, sha256, body }: Upload & { body: Blob },
  partBytes: number,
  options: UploadOptions,
): Promise<"uploaded" | "stale"> {
  const path = runnerPaths.object(key);
  const begun = await send(lease, { method: "POST", path, capability, headers: { "x-atelier-sha256": sha256 } }, options);
  if (begun === "stale") return "stale";
  const { upload_id } = begunUploadSchema.parse(begun.json);
  const parts: TakenPart[] = [];
  for (let start = 0; start < body.size; start += partBytes) {
    const bytes = new Uint8Array(await body.slice(start, start + partBytes).arrayBuffer());
    const query = new URLSearchParams({ upload_id, part: String(parts.length + 1) });
    const headers = { "x-atelier-sha256": createHash("sha256").update(bytes).digest("hex") };
    const taken = await send(lease, { method: "PUT", path: `${path}?${query}`, capability, headers, body: bytes }, options);
    if (taken === "stale") return "stale";
    parts.push(takenPartSchema.parse(taken.json));
  }
  const all = JSON.stringify({ bytes: body.size, parts });
  const ended = { method: "POST", path: `${path}?${new URLSearchParams({ upload_id })}`, capability, headers: {}, body: all } as const;
  return (await send(lease, ended, options)) === "stale" ? "stale" : "uploaded";
}

interface ObjectRequest {
  method: "PUT" | "POST";
  /** With its query. */
  path: string;
  capability: string;
  headers: Record<string, string>;
  body?: Uint8Array<ArrayBuffer> | Blob | string;
}

/** Sends a request until it is answered. @returns the answer's JSON, or undefined where it has none */
async function send(lease: HeldLease, request: ObjectRequest, options: UploadOptions): Promise<{ json: unknown } | "stale"> {
  for (let attempt = 0; ; attempt++) {
    lease.activity++;
    const answer = await sendOnce(lease, request, options);
    if (typeof answer !== "string" && answer.status >= 200 && answer.status < 300) return { json: parseJson(answer.body) };
    const status = typeof answer === "string" ? undefined : answer.status;
    if (status === 409) return "stale";
    const problem = typeof answer === "string" ? answer : `HTTP ${answer.status}`;
    if (status !== undefined && status < 500 && ![408, 422, 429].includes(status))
      throw new UploadRefused(status, `the edge refused the upload: ${problem}`);
    const wait = backoffMs(attempt, options.backoff);
    if (Date.now() + wait > lease.attemptDeadline)
      throw new UploadRefused(0, `the upload did not succeed before the attempt's deadline: ${problem}`);
    options.onRetry?.(problem);
    await delay(wait, undefined, { signal: lease.ended });
  }
}

/** One attempt: the answer, or what kept it from coming. */
async function sendOnce(
  lease: HeldLease,
  { method, path, capability, headers, body }: ObjectRequest,
  { edgeUrl, timeoutMs }: UploadOptions,
): Promise<{ status: number; body: string } | string> {
  try {
    const response = await fetch(new URL(path, edgeUrl), {
      method,
      headers: { ...headers, authorization: `Bearer ${capability}`, "x-request-id": lease.requestId },
      ...(body !== undefined && { body }),
      redirect: "manual",
      signal: AbortSignal.any([lease.ended, AbortSignal.timeout(timeoutMs)]),
    });
    return { status: response.status, body: await response.text() };
  } catch (error) {
    if (lease.ended.aborted) throw error;
    return networkProblem(error);
  }
}

/** What fetch threw, with the system's error code where there is one; it has no URL or token in it. */
export function networkProblem(error: unknown): string {
  if (!(error instanceof Error)) return "unknown network error";
  const cause = error.cause;
  if (cause instanceof Error && "code" in cause && typeof cause.code === "string") return cause.code;
  return error.name === "TimeoutError" ? "timed out" : error.message;
}
