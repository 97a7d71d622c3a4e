import type { z } from "zod";
import { sha256Hex } from "../shared/canonical.ts";
import { parseJson } from "../shared/json.ts";
import { type PictureRequest, pictureRequestSchema } from "../shared/picture.ts";
import type { DispatcherMessage } from "../shared/protocol.ts";
import { type GrantClaims, type PublicJwk, type Refusal, SignatureRefused, verify } from "../shared/signing.ts";
import { type TrainingRequest, trainingRequestSchema } from "../shared/training.ts";

export type LeaseMessage = Extract<DispatcherMessage, { type: "lease" }>;

/** Why a grant was refused: a label of the metrics and part of the `reject` message. */
export type GrantRefusal = Refusal | "other_instance" | "not_granted" | "other_params" | "params_malformed" | "attempt_over";

export class GrantRefused extends Error {
  override readonly name = "GrantRefused";
  readonly reason: GrantRefusal;
  constructor(reason: GrantRefusal, detail: string) {
    super(`grant refused: ${detail}`);
    this.reason = reason;
  }
}

/** What an execution computes. */
export type GrantedWork = { kind: "picture"; request: PictureRequest } | { kind: "training"; request: TrainingRequest };

interface GrantedLease {
  execution: string;
  epoch: number;
  requestId: string;
  /** Milliseconds since 1970. */
  attemptDeadline: number;
  /** Capability tokens: opaque here, the edge reads them. */
  capabilities: ClaimedExecution["capabilities"];
  /** What may be fetched for it. */
  inputs: ClaimedExecution["inputs"];
  adapters: ClaimedExecution["adapters"];
}

/** One execution that this runner may compute now. */
export type GrantedExecution = GrantedLease & GrantedWork;
type ClaimedExecution = GrantClaims["executions"][number];

export interface GrantContext {
  instance: string;
  keys: readonly PublicJwk[];
  /** Milliseconds since 1970. */
  now?: number;
}

/**
 * Verifies a lease message: the grant's signature, type, audience and times, that it is for this instance, and that every execution of the
 * message stands in it with the same epoch and the same SHA-256 of the parameters. All or nothing: one wrong execution refuses the message.
 * @throws GrantRefused
 */
export async function verifyLease(message: LeaseMessage, { instance, keys, now = Date.now() }: GrantContext): Promise<GrantedExecution[]> {
  const claims = await verifyGrant(message.grant, keys, now);
  if (claims.instance !== instance) throw new GrantRefused("other_instance", `it is for ${claims.instance}, this is ${instance}`);
  return Promise.all(message.executions.map(execution => verifyExecution(execution, claims, now)));
}

async function verifyGrant(grant: string, keys: readonly PublicJwk[], now: number): Promise<GrantClaims> {
  try {
    return await verify("grant", grant, keys, now);
  } catch (error) {
    if (error instanceof SignatureRefused) throw new GrantRefused(error.reason, error.reason);
    throw error;
  }
}

async function verifyExecution(
  { execution, epoch, params }: LeaseMessage["executions"][number],
  claims: GrantClaims,
  now: number,
): Promise<GrantedExecution> {
  const granted = claims.executions.find(claim => claim.execution === execution && claim.epoch === epoch);
  if (!granted) throw new GrantRefused("not_granted", `it does not name ${execution} with epoch ${epoch}`);
  if ((await sha256Hex(params)) !== granted.params_sha256) {
    throw new GrantRefused("other_params", `the parameters of ${execution} don't have the hash that was signed`);
  }
  if (now > granted.attempt_deadline) throw new GrantRefused("attempt_over", `the attempt of ${execution} ended before it began`);
  return {
    execution,
    epoch,
    requestId: granted.request_id,
    attemptDeadline: granted.attempt_deadline,
    capabilities: granted.capabilities,
    inputs: granted.inputs,
    adapters: granted.adapters,
    ...parseParams(params, granted.kind, execution),
  };
}

/** The message tells which fields are wrong, not what stands in them: it goes into logs and to the edge. */
function parseParams(params: string, kind: GrantedWork["kind"], execution: string): GrantedWork {
  const read = <T>(schema: z.ZodType<T>): T => {
    const parsed = schema.safeParse(parseJson(params));
    if (parsed.success) return parsed.data;
    throw new GrantRefused("params_malformed", `the parameters of ${execution} are not valid: ${fieldsOf(parsed.error)}`);
  };
  return kind === "picture" ? { kind, request: read(pictureRequestSchema) } : { kind, request: read(trainingRequestSchema) };
}

function fieldsOf(error: z.ZodError): string {
  return error.issues.map(({ path, code }) => `${path.join(".") || "(all)"} (${code})`).join(", ");
}
