import { z } from "zod";
import { contentHashSchema } from "../../shared/names.ts";
import type { ExecutionKind } from "../../shared/signing.ts";
import type { Env } from "../env.ts";
import type { DispatcherRpc } from "./rpc.ts";
import type { OfferedExecution } from "./store.ts";

type Offer = Omit<Parameters<DispatcherRpc["offer"]>[0], "v">;

interface Row extends Record<"tenant_id" | "pool" | "params_sha256" | "model_hash" | "refiner_hash" | "batch_key" | "state", string> {
  readonly kind: ExecutionKind;
  readonly deadline_at: number;
  readonly engine_version: number;
  /** JSON list of content hashes. */
  readonly adapters: string;
}

/** What D1 knows of an offered execution: `gone` where it is not live, `altered` where it is not what was signed. */
export async function lookUpOffer(
  env: Env,
  pool: string,
  { execution, tenant, params_sha256, request_id }: Offer,
): Promise<OfferedExecution | "gone" | "altered"> {
  const row = await env.DB.prepare(
    `SELECT tenant_id, pool, params_sha256, model_hash, batch_key, state, json_extract(params, '$.engine_version') AS engine_version,
       coalesce(json_extract(params, '$.refiner.model'), '') AS refiner_hash,
       (SELECT json_group_array(value ->> 'hash') FROM json_each(inputs, '$.adapters')) AS adapters, kind,
       CASE kind WHEN 'training' THEN (SELECT max(j.deadline_at) FROM job_pictures p JOIN jobs j ON j.id = p.job_id WHERE p.execution_id = executions.id)
         ELSE 0 END AS deadline_at
     FROM executions WHERE id = ?`,
  )
    .bind(execution)
    .first<Row>();
  if (row?.state !== "active") return "gone";
  if (row.tenant_id !== tenant || row.pool !== pool || row.params_sha256 !== params_sha256) return "altered";
  const { model_hash, refiner_hash, engine_version, batch_key, kind, deadline_at } = row;
  const adapters = z.array(contentHashSchema).parse(JSON.parse(row.adapters));
  return { execution, tenant, params_sha256, model_hash, refiner_hash, engine_version, request_id, batch_key, adapters, kind, deadline_at };
}
