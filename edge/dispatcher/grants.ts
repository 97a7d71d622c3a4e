import { sha256Hex } from "../../shared/canonical.ts";
import { PROTOCOL_VERSION } from "../../shared/engine.ts";
import { type DispatcherMessage, stagingKey } from "../../shared/protocol.ts";
import { sign } from "../../shared/signing.ts";
import { type Env, settings } from "../env.ts";
import type { ExecutionRow, LeaseRow } from "./tables.ts";

/** Most bytes of a result file. */
export const MAX_RESULT_BYTES = 32 * 1024 * 1024;
/** Most bytes of a progress report with its preview. */
export const MAX_PROGRESS_BYTES = 128 * 1024;

/** Object key that a progress capability names. */
export function progressKey(execution: string): string {
  return `progress/${execution}`;
}

/** The parameters of an execution in D1 are gone, or are not what was signed. */
export class ParamsRefused extends Error {
  override readonly name = "ParamsRefused";
}

/**
 * The message that gives a lease to its instance: parameters from D1, and a signed grant with the capabilities for this lease alone.
 * @throws ParamsRefused
 */
export async function leaseMessage(
  env: Env,
  pool: string,
  { id, params_sha256, request_id }: ExecutionRow,
  lease: LeaseRow,
): Promise<DispatcherMessage> {
  const params = await loadParams(env, id, params_sha256);
  const { instance, epoch, attempt_deadline } = lease;
  const scope = { execution: id, epoch, instance, pool, exp: Math.ceil(attempt_deadline / 1000) };
  const { CAPABILITY_KEY, GRANT_KEY } = settings(env);
  const [result, progress] = await Promise.all([
    sign("capability", { ...scope, method: "PUT", key: stagingKey(id, epoch), max_bytes: MAX_RESULT_BYTES }, CAPABILITY_KEY),
    sign("capability", { ...scope, method: "POST", key: progressKey(id), max_bytes: MAX_PROGRESS_BYTES }, CAPABILITY_KEY),
  ]);
  const execution = { execution: id, epoch, params_sha256, attempt_deadline, request_id, capabilities: { result, progress }, inputs: [], adapters: [] };
  const exp = Math.ceil(lease.ack_deadline / 1000);
  const grant = await sign("grant", { instance, executions: [execution], exp }, GRANT_KEY);
  return { v: PROTOCOL_VERSION, type: "lease", grant, executions: [{ execution: id, epoch, params }] };
}

async function loadParams(env: Env, execution: string, sha256: string): Promise<string> {
  const row = await env.DB.prepare("SELECT params FROM executions WHERE id = ?").bind(execution).first<{ params: string }>();
  if (!row) throw new ParamsRefused("its parameters are gone");
  if ((await sha256Hex(row.params)) !== sha256) throw new ParamsRefused("its parameters are not what was signed");
  return row.params;
}
