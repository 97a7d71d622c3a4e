import { sha256Hex } from "../../shared/canonical.ts";
import { PROTOCOL_VERSION } from "../../shared/engine.ts";
import { MAX_RUNNER_FILE_BYTES } from "../../shared/file-parts.ts";
import { parseJson } from "../../shared/json.ts";
import { checkpointKey, type DispatcherMessage, stagingKey, trainingStagingKey } from "../../shared/protocol.ts";
import { sign } from "../../shared/signing.ts";
import { type Env, settings } from "../env.ts";
import { type ExecutionInputs, executionInputsSchema } from "../inputs.ts";
import type { ExecutionRow, LeaseRow } from "./tables.ts";

/** Most bytes of a result file. */
export const MAX_RESULT_BYTES = 32 * 1024 * 1024;
/** Most bytes of a progress report with its preview. */
export const MAX_PROGRESS_BYTES = 128 * 1024;

/** Most bytes of a training's progress report: several sample pictures. */
const MAX_TRAINING_PROGRESS_BYTES = 1024 * 1024;

/** Object key that a progress capability names. */
export function progressKey(execution: string): string {
  return `progress/${execution}`;
}

/** An execution's row in D1 is gone, or is not what was signed. */
export class ParamsRefused extends Error {
  override readonly name = "ParamsRefused";
}

/** A lease and what it is about. */
export interface Granted {
  readonly execution: ExecutionRow;
  readonly lease: LeaseRow;
}
/** What a runner has to know of an execution, from D1. */
export interface Prepared extends Granted {
  readonly params: string;
  readonly inputs: ExecutionInputs;
}

/** @throws ParamsRefused */
export async function prepare(env: Env, { execution, lease }: Granted): Promise<Prepared> {
  const row = await env.DB.prepare("SELECT params, inputs FROM executions WHERE id = ?")
    .bind(execution.id)
    .first<{ params: string; inputs: string }>();
  if (!row) throw new ParamsRefused("its parameters are gone");
  if ((await sha256Hex(row.params)) !== execution.params_sha256) throw new ParamsRefused("its parameters are not what was signed");
  const inputs = executionInputsSchema.safeParse(parseJson(row.inputs));
  if (!inputs.success) throw new ParamsRefused("its inputs are malformed");
  return { execution, lease, params: row.params, inputs: inputs.data };
}

/** The message that gives the leases of one grant to their instance: a grant signed over all, with the capabilities for each lease alone. */
export async function leaseMessage(env: Env, pool: string, batch: readonly [Prepared, ...Prepared[]]): Promise<DispatcherMessage> {
  const { instance, ack_deadline } = batch[0].lease;
  const executions = await Promise.all(batch.map(prepared => grantedExecution(env, pool, prepared)));
  const grant = await sign("grant", { instance, executions, exp: Math.ceil(ack_deadline / 1000) }, settings(env).GRANT_KEY);
  return {
    v: PROTOCOL_VERSION,
    type: "lease",
    grant,
    executions: batch.map(({ execution, lease, params }) => ({ execution: execution.id, epoch: lease.epoch, params })),
  };
}

type May = (method: "GET" | "PUT" | "POST", key: string, max_bytes: number) => Promise<string>;

async function checkpointCapabilities(execution: string, epoch: number, may: May): Promise<{ put: string; get: string }> {
  const [put, get] = await Promise.all([
    may("PUT", checkpointKey(execution, epoch), MAX_RUNNER_FILE_BYTES),
    may("GET", checkpointKey(execution), MAX_RUNNER_FILE_BYTES),
  ]);
  return { put, get };
}

async function grantedExecution(env: Env, pool: string, { execution: row, lease, inputs }: Prepared) {
  const { id: execution, params_sha256, request_id } = row;
  const { instance, epoch, attempt_deadline } = lease;
  const may: May = (method, key, max_bytes) => {
    const scope = { execution, epoch, instance, pool, exp: Math.ceil(attempt_deadline / 1000) };
    return sign("capability", { ...scope, method, key, max_bytes }, settings(env).CAPABILITY_KEY);
  };
  const [result, progress, checkpoint, ...files] = await Promise.all([
    row.kind === "training"
      ? may("PUT", trainingStagingKey(execution, epoch), MAX_RUNNER_FILE_BYTES)
      : may("PUT", stagingKey(execution, epoch), MAX_RESULT_BYTES),
    may("POST", progressKey(execution), row.kind === "training" ? MAX_TRAINING_PROGRESS_BYTES : MAX_PROGRESS_BYTES),
    row.kind === "training" ? checkpointCapabilities(execution, epoch, may) : null,
    ...inputs.files.map(async file => ({ ...file, capability: await may("GET", file.key, file.bytes) })),
  ]);
  const capabilities = { result, progress, checkpoint };
  return {
    execution,
    epoch,
    kind: row.kind,
    params_sha256,
    attempt_deadline,
    request_id,
    capabilities,
    inputs: files,
    adapters: inputs.adapters,
  };
}
