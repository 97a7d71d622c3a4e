/**
 * A training amid its course as one safetensors file: with the dataset and the request it is all that the rest depends on, so that an
 * interrupted training ends bit-equal to an uninterrupted one. It is taken between optimiser steps, where no gradients are accumulated, and
 * random numbers are functions of the step's number (random.ts).
 */
import { renameSync, rmSync } from "node:fs";
import { z } from "zod";
import { parseJson } from "../../shared/json.ts";
import { ModelError } from "../weights/model-error.ts";
import { withSafetensors } from "../weights/safetensors.ts";
import { bytesOf, type TensorToWrite, writeSafetensors } from "../weights/safetensors-write.ts";

/** Counters and curves; one JSON text in the header. */
const progressSchema = z.strictObject({
  request: z.string(),
  /** Steps done. */
  step: z.int().min(0),
  /** Milliseconds of computing so far. */
  computed_ms: z.number(),
  smoothed_loss: z.number().nullable(),
  losses: z.array(z.tuple([z.int(), z.number()])),
  validation: z.array(z.tuple([z.int(), z.number()])),
  best: z.strictObject({ step: z.int(), loss: z.number() }).nullable(),
});
export type TrainingProgressState = z.infer<typeof progressSchema>;

/** Every array that changes from step to step, by name: they are written from and read into these very arrays. */
export type CheckpointArrays = ReadonlyMap<string, Float32Array | Uint8Array>;

/** Writes beside the path and renames: what stands there is always whole. */
export function saveCheckpoint(path: string, arrays: CheckpointArrays, progress: TrainingProgressState): void {
  const tensors = [...arrays].map(
    ([name, array]): TensorToWrite => ({
      name,
      dtype: array instanceof Float32Array ? "F32" : "U8",
      shape: [array.length],
      data: () => [bytesOf(array)],
    }),
  );
  const temporary = `${path}.${crypto.randomUUID()}.tmp`;
  try {
    writeSafetensors(temporary, tensors, { metadata: { progress: JSON.stringify(progress) } });
    renameSync(temporary, path);
  } finally {
    rmSync(temporary, { force: true });
  }
}

/** The counters alone. @throws ModelError as `loadCheckpoint` */
export function readProgress(path: string, request: string): TrainingProgressState {
  return withSafetensors(path, source => progressOf(path, source.metadata, request));
}

function progressOf(path: string, { progress }: Readonly<Record<string, string>>, request: string): TrainingProgressState {
  const parsed = progressSchema.safeParse(parseJson(progress ?? ""));
  if (!parsed.success) throw new ModelError(path, "progress", "the counters of a training", parsed.error.issues[0]!.message);
  if (parsed.data.request !== request) throw new ModelError(path, "request", request, parsed.data.request);
  return parsed.data;
}

/**
 * Fills the arrays. @param request hash of the request that goes on
 * @throws ModelError where the file is of another request, or its arrays are not these
 */
export function loadCheckpoint(path: string, arrays: CheckpointArrays, request: string): TrainingProgressState {
  return withSafetensors(path, source => {
    const progress = progressOf(path, source.metadata, request);
    for (const [name, array] of arrays) {
      const { dtype, shape } = source.entry(name);
      const expected = `${array instanceof Float32Array ? "F32" : "U8"} [${array.length}]`;
      if (`${dtype} [${shape}]` !== expected) throw new ModelError(path, name, expected, `${dtype} [${shape}]`);
      bytesOf(array).set(source.readBytes(name));
    }
    const unknown = [...source.entries.keys()].find(name => !arrays.has(name));
    if (unknown !== undefined) throw new ModelError(path, unknown, `one of ${[...arrays.keys()].join(", ")}`, "another array");
    return progress;
  });
}
