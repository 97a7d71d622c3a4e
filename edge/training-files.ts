import { z } from "zod";
import { sameUlid } from "../shared/names.ts";
import { checkpointKey } from "../shared/protocol.ts";
import { type TrainingFile, trainingFileSchema } from "../shared/training.ts";
import { announcedHash } from "./file-parts.ts";
import type { JobRow } from "./tenant.ts";
import type { TrainingRow } from "./tenant-datasets.ts";

/** Where the files of trainings and datasets lie. */

/** Object key of a file that a training made. */
export function trainingKey(tenant: string, training: string, path: string): string {
  return `trainings/${tenant}/${training}/${path}`;
}

/** Object key of a file of a tenant's datasets. */
export function datasetKey(tenant: string, sha256: string): string {
  return `datasets/${tenant}/${sha256}`;
}

/** The checkpoint of the last attempt that made one; undefined where none did. */
export async function latestCheckpoint(bucket: R2Bucket, execution: string): Promise<R2Object | undefined> {
  const { objects } = await bucket.list({ prefix: `${checkpointKey(execution)}/` });
  const epochOf = ({ key }: R2Object) => Number(key.slice(key.lastIndexOf("/") + 1));
  return objects.sort((a, b) => epochOf(b) - epochOf(a))[0];
}

/** Path under which the last checkpoint of a training that came to no result is handed out. */
const CHECKPOINT_PATH = "checkpoint";

/** The files of a training and where they lie: what it made, or, where it ended without a result, its last checkpoint while that is kept. */
export async function trainingFiles(
  bucket: R2Bucket,
  { id, tenant_id, files }: TrainingRow,
  status: JobRow["status"],
): Promise<(TrainingFile & { key: string })[]> {
  const made = z.array(trainingFileSchema).nullable().parse(files);
  if (made) return made.map(file => ({ ...file, key: trainingKey(tenant_id, id, file.path) }));
  if (status !== "canceled" && status !== "failed") return [];
  const checkpoint = await latestCheckpoint(bucket, sameUlid(id, "execution"));
  const object = checkpoint && (await bucket.head(checkpoint.key));
  const sha256 = object ? announcedHash(object) : undefined;
  if (!object || sha256 === undefined) return [];
  return [{ path: CHECKPOINT_PATH, sha256, bytes: object.size, media_type: "application/octet-stream", key: object.key }];
}
