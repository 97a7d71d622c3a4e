import { AtelierError } from "../shared/errors.ts";
import { sameUlid } from "../shared/names.ts";
import { type Lease, trainingStagingKey } from "../shared/protocol.ts";
import type { TrainingFile, TrainingResult } from "../shared/training.ts";
import { openAdapter } from "./adapter-uploads.ts";
import type { Env } from "./env.ts";
import { copyFile } from "./file-parts.ts";
import { newId } from "./ids.ts";
import { errorFields, log } from "./log.ts";
import { moveFile } from "./staged-files.ts";
import { adapterKey } from "./tenant-files.ts";
import { trainingKey } from "./training-files.ts";

/** What settling has to know of a training; its name is null where its row was deleted meanwhile. */
interface Training {
  readonly id: string;
  readonly tenant_id: string;
  readonly state: string;
  readonly kind: string;
  readonly name: string | null;
}

/**
 * Moves a training's files to their place, registers its adapters, then says so in D1. Commit beats cancel here too: what a canceled training
 * has made is kept. Every step may run again.
 * @returns why the result is refused, if it is
 */
export async function commitTraining(
  env: Env,
  { execution, epoch, result }: Lease & { result: TrainingResult },
): Promise<string | undefined> {
  const training = await loadTraining(env, execution);
  // Terminal in D1: done before, by an attempt of ours that didn't hear of it.
  if (!training || (training.state !== "active" && training.state !== "abandoned")) return undefined;
  if (training.kind !== "training") return `expected the result of a ${training.kind}, got that of a training`;
  const unknown = result.adapters.flatMap(({ files }) => files).find(path => !result.files.some(file => file.path === path));
  if (unknown !== undefined) return `adapters: expected paths among the files, got ${unknown}`;
  if (training.name === null) {
    await markSucceeded(env, training, { execution, epoch, result, adapters: [] });
    return undefined;
  }
  const { id, tenant_id: tenant } = training;
  for (const file of result.files) {
    const refused = await moveFile(
      env.BUCKET,
      trainingStagingKey(execution, epoch, file.path),
      trainingKey(tenant, id, file.path),
      file,
      file.media_type,
    );
    if (refused !== undefined) return `${file.path}: ${refused}`;
  }
  const adapters = await registerAdapters(env, training, training.name, result);
  await markSucceeded(env, training, { execution, epoch, result, adapters });
  return undefined;
}

async function loadTraining(env: Env, execution: string): Promise<Training | null> {
  const id = sameUlid(execution, "training");
  return env.DB.prepare(
    "SELECT ?2 AS id, e.tenant_id, e.state, e.kind, t.name FROM executions e LEFT JOIN trainings t ON t.id = ?2 WHERE e.id = ?1",
  )
    .bind(execution, id)
    .first<Training>();
}

/** Registers what serves as adapter under the training's name. @returns the ids of those that are ready */
async function registerAdapters(env: Env, { id, tenant_id: tenant }: Training, name: string, result: TrainingResult): Promise<string[]> {
  const ids: string[] = [];
  for (const [i, { suffix, files: paths }] of result.adapters.entries()) {
    const files = result.files.filter(({ path }) => paths.includes(path));
    await copyToAdapters(env.BUCKET, tenant, id, files);
    const adapter = await register(env, tenant, {
      id: i === 0 ? sameUlid(id, "adapter") : newId("adapter"),
      name: suffix === null ? name : `${name}-${suffix}`,
      files,
    });
    if (adapter !== undefined) ids.push(adapter);
  }
  return ids;
}

async function copyToAdapters(bucket: R2Bucket, tenant: string, id: string, files: readonly TrainingFile[]): Promise<void> {
  for (const { path, sha256 } of files) {
    const object = await bucket.get(trainingKey(tenant, id, path));
    if (object) await copyFile(bucket, object, adapterKey(tenant, sha256), { sha256 });
  }
}

/** Undefined where the files are no adapter, or the tenant has too many: the training keeps its files all the same. */
async function register(
  env: Env,
  tenant: string,
  { id, name, files }: { id: string; name: string; files: readonly TrainingFile[] },
): Promise<string | undefined> {
  try {
    const described = files.map(({ path, sha256, bytes }) => ({ path, sha256, bytes }));
    const { adapter } = await openAdapter(env, { tenant, scopes: [] }, id, { name, visibility: "private", files: described });
    if (adapter.status === "ready") return adapter.id;
    log("warn", "what a training made is not served as an adapter", {
      adapter: adapter.id,
      status: adapter.status,
      reasons: adapter.reasons?.join("; ") ?? null,
    });
  } catch (error) {
    if (!(error instanceof AtelierError) || error.code === "unavailable") throw error;
    log("warn", "what a training made was not registered", errorFields(error));
  }
  return undefined;
}

async function markSucceeded(
  env: Env,
  { id }: Training,
  { execution, epoch, result, adapters }: Lease & { result: TrainingResult; adapters: readonly string[] },
): Promise<void> {
  const now = Date.now();
  const run = (query: string, ...values: (string | number)[]) => env.DB.prepare(query).bind(execution, ...values);
  await env.DB.batch([
    run(
      "UPDATE executions SET state = 'succeeded', epoch = ?2, finished_at = ?3 WHERE id = ?1 AND state IN ('active', 'abandoned')",
      epoch,
      now,
    ),
    run(
      `UPDATE trainings SET report = ?3, files = ?4, adapters = ?5
       WHERE id = ?2 AND files IS NULL AND EXISTS (SELECT 1 FROM executions WHERE id = ?1 AND state = 'succeeded' AND epoch = ?6)`,
      ...[id, JSON.stringify(result.report), JSON.stringify(result.files), JSON.stringify(adapters), epoch],
    ),
    run("UPDATE job_pictures SET state = 'succeeded' WHERE execution_id = ?1 AND state = 'pending'"),
    run(
      `UPDATE jobs SET status = 'succeeded', finished_at = ?2
       WHERE status = 'active' AND id IN (SELECT job_id FROM job_pictures WHERE execution_id = ?1 AND state = 'succeeded')`,
      now,
    ),
  ]);
}
