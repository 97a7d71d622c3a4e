import { z } from "zod";

/** Every error that a client can meet: its HTTP status and a sentence that stays the same. Codes are stable; details are not. */
export const errorTable = {
  invalid_request: { status: 400, title: "The request is not valid." },
  invalid_json: { status: 400, title: "The body is not JSON." },
  idempotency_key_malformed: { status: 400, title: "The Idempotency-Key header is malformed." },
  unsupported: { status: 400, title: "This is not supported." },
  unauthorized: { status: 401, title: "A valid API key is needed." },
  forbidden: { status: 403, title: "The key does not allow this." },
  not_found: { status: 404, title: "There is no such resource." },
  cache_miss: { status: 404, title: 'The picture is not in the cache, and cache: "only" was asked for.' },
  method_not_allowed: { status: 405, title: "This resource does not take that method." },
  idempotency_in_flight: { status: 409, title: "A request with this Idempotency-Key is still being answered." },
  stale_epoch: { status: 409, title: "The lease has ended: this epoch is no longer current." },
  conflict: { status: 409, title: "The resource is in another state." },
  payload_too_large: { status: 413, title: "The body is too large." },
  range_not_satisfiable: { status: 416, title: "The range cannot be satisfied." },
  hash_mismatch: { status: 422, title: "The content does not have the hash that was announced." },
  adapter_refused: { status: 422, title: "The files are no adapter that can be used." },
  idempotency_mismatch: { status: 422, title: "This Idempotency-Key was used with another body." },
  rate_limited: { status: 429, title: "Too many requests." },
  input_gone: { status: 410, title: "A picture or an adapter that this needs was deleted meanwhile." },
  internal: { status: 500, title: "Something failed on our side." },
  unavailable: { status: 503, title: "A part of the service cannot be reached now." },
  deadline_exceeded: { status: 504, title: "The job did not end before its deadline." },
  no_runner: { status: 504, title: "No runner was there for this model before the deadline." },
  attempts_exhausted: { status: 500, title: "Every attempt to compute this was lost." },
  runner_failed: { status: 500, title: "The runner could not compute this." },
  model_unavailable: { status: 503, title: "The model cannot be loaded." },
} as const satisfies Record<string, { status: number; title: string }>;

export type ErrorCode = keyof typeof errorTable;
const codes = Object.keys(errorTable) as [ErrorCode, ...ErrorCode[]];
export const errorCodeSchema = z.enum(codes);

/** One thing that is wrong with a request: where, what was expected, what came. */
export const fieldErrorSchema = z.object({ field: z.string(), expected: z.string(), got: z.string().optional() });
export type FieldError = z.infer<typeof fieldErrorSchema>;

/** RFC 9457 problem document. `instance` is the request id. */
export const problemSchema = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    code: errorCodeSchema,
    detail: z.string().optional(),
    instance: z.string().optional(),
    errors: z.array(fieldErrorSchema).optional(),
  })
  .meta({ id: "Problem" });
export type Problem = z.infer<typeof problemSchema>;

/** An error as a job carries it to its end. */
export const jobErrorSchema = z.object({ code: errorCodeSchema, message: z.string() });
export type JobError = z.infer<typeof jobErrorSchema>;

/** The one error type: thrown with a code of the table and a detail that is safe to show. */
export class AtelierError extends Error {
  readonly code: ErrorCode;
  readonly errors: readonly FieldError[] | undefined;
  constructor(code: ErrorCode, detail?: string, options?: { errors?: readonly FieldError[]; cause?: unknown }) {
    super(detail ?? errorTable[code].title, options?.cause === undefined ? undefined : { cause: options.cause });
    this.name = "AtelierError";
    this.code = code;
    this.errors = options?.errors;
  }
}

/** The problem document of an error code. */
export function problemOf(code: ErrorCode, instance?: string, detail?: string, errors?: readonly FieldError[]): Problem {
  const { status, title } = errorTable[code];
  return {
    type: `urn:atelier:error:${code}`,
    title,
    status,
    code,
    ...(detail !== undefined && detail !== title && { detail }),
    ...(instance !== undefined && { instance }),
    ...(errors?.length && { errors: [...errors] }),
  };
}
