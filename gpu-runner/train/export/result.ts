/** Trained tensors on their way into files. */
import { mkdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { type TrainingFile, trainingMediaType } from "../../../shared/training.ts";
import { sha256OfFile } from "../../weights/file-hash.ts";
import { bytesOf, type WriteOptions, writeSafetensors } from "../../weights/safetensors-write.ts";

/** Named as the method names it: LoRA as diffusers, full weights as the base's tensors, the rest as its released files. */
export interface ResultTensor {
  name: string;
  shape: readonly number[];
  readonly data: Float32Array;
}

/** Writes fp32 below the folder of results. */
export function writeTensors(
  folder: string,
  path: string,
  tensors: readonly ResultTensor[],
  metadata: WriteOptions["metadata"] = {},
): void {
  const file = join(folder, path);
  mkdirSync(dirname(file), { recursive: true });
  const entries = tensors.map(tensor => {
    const { name, shape } = tensor;
    return { name, shape, dtype: "F32" as const, data: () => [bytesOf(tensor.data)] };
  });
  writeSafetensors(file, entries, { metadata });
}

/** What a result says of a file that was written. */
export async function describeFile(folder: string, path: string): Promise<TrainingFile> {
  const file = join(folder, path);
  return { path, sha256: await sha256OfFile(file), bytes: statSync(file).size, media_type: trainingMediaType(path) };
}
