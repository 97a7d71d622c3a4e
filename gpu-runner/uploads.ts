import { setTimeout as delay } from "node:timers/promises";
import { runnerPaths, stagingKey } from "../shared/protocol.ts";
import { type Backoff, backoffMs } from "./backoff.ts";
import type { HeldLease } from "./leases.ts";
import type { Picture } from "./pipeline/context.ts";

export interface UploadOptions {
  edgeUrl: URL;
  /** Most time of one attempt, in milliseconds. */
  timeoutMs: number;
  backoff: Backoff;
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

/** As `uploadResult`, of anything. */
export async function upload(lease: HeldLease, file: Upload, options: UploadOptions): Promise<"uploaded" | "stale"> {
  for (let attempt = 0; ; attempt++) {
    lease.activity++;
    const answer = await putOnce(lease, file, options);
    if (typeof answer === "number" && answer >= 200 && answer < 300) return "uploaded";
    if (answer === 409) return "stale";
    const problem = typeof answer === "number" ? `HTTP ${answer}` : answer;
    if (typeof answer === "number" && answer < 500 && ![408, 422, 429].includes(answer))
      throw new UploadRefused(answer, `the edge refused the upload: ${problem}`);
    const wait = backoffMs(attempt, options.backoff);
    if (Date.now() + wait > lease.attemptDeadline)
      throw new UploadRefused(0, `the upload did not succeed before the attempt's deadline: ${problem}`);
    options.onRetry?.(problem);
    await delay(wait, undefined, { signal: lease.ended });
  }
}

/** One attempt: the HTTP status, or what kept an answer from coming. */
async function putOnce(lease: HeldLease, file: Upload, { edgeUrl, timeoutMs }: UploadOptions): Promise<number | string> {
  try {
    const response = await fetch(new URL(runnerPaths.object(file.key), edgeUrl), {
      method: "PUT",
      headers: {
        authorization: `Bearer ${file.capability}`,
        "content-type": file.mediaType,
        "x-atelier-sha256": file.sha256,
        "x-request-id": lease.requestId,
      },
      body: file.body,
      redirect: "manual",
      signal: AbortSignal.any([lease.ended, AbortSignal.timeout(timeoutMs)]),
    });
    await response.body?.cancel();
    return response.status;
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
