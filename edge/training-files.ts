import { checkpointKey } from "../shared/protocol.ts";

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
