import { z } from "zod";
import { errorCodeSchema } from "../shared/errors.ts";
import { contentHashSchema } from "../shared/names.ts";
import { pictureRequestSchema } from "../shared/picture.ts";
import { progressReportSchema } from "../shared/protocol.ts";
import { executionProviderNames } from "./graph/emitter.ts";

/** What the main thread and the model thread say to each other, and the memory that they share. */

/** What a model thread is started with. */
export const workerDataSchema = z.object({
  models: z.array(z.string()).describe("folders"),
  provider: z.enum(executionProviderNames),
  cacheDir: z.string(),
  threads: z.int().positive().optional(),
  shared: z.instanceof(SharedArrayBuffer),
});
export type WorkerData = z.infer<typeof workerDataSchema>;

/** Cells of the shared Uint32Array. */
export const cells = {
  /** Steps of the model thread: a computation that no longer raises it is hung. */
  counter: 0,
  /** Number of the task that has to stop before its next step. */
  canceled: 1,
} as const;
export const SHARED_BYTES = 4 * Object.keys(cells).length;

const task = z.int().positive();

export const toWorkerSchema = z.object({ type: z.literal("compute"), task, request: pictureRequestSchema });
export type ToWorker = z.infer<typeof toWorkerSchema>;

const bytes = z.custom<Uint8Array<ArrayBuffer>>(
  value => value instanceof Uint8Array && value.buffer instanceof ArrayBuffer,
  "expected bytes",
);

export const fromWorkerSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("loaded"), models: z.array(z.object({ folder: z.string(), hash: contentHashSchema })) }),
  z.object({ type: z.literal("load_failed"), message: z.string(), disk_full: z.boolean() }),
  progressReportSchema.extend({ type: z.literal("progress"), task }),
  z.object({
    type: z.literal("picture"),
    task,
    picture: z.object({ bytes, mediaType: z.string(), width: z.int(), height: z.int(), sha256: z.string() }),
  }),
  z.object({
    type: z.literal("failed"),
    task,
    code: errorCodeSchema,
    message: z.string(),
    retryable: z.boolean(),
    detail: z.string().describe("for the log"),
  }),
  z.object({ type: z.literal("canceled"), task }),
]);
export type FromWorker = z.infer<typeof fromWorkerSchema>;
