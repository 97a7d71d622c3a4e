import { z } from "zod";
import { errorCodeSchema } from "../shared/errors.ts";
import { contentHashSchema, sha256Schema } from "../shared/names.ts";
import { pictureRequestSchema } from "../shared/picture.ts";
import { progressReportSchema } from "../shared/protocol.ts";
import { trainingEventSchema, trainingRequestSchema, trainingResultSchema } from "../shared/training.ts";
import { executionProviderNames } from "./graph/emitter.ts";
import { registeredModelSchema } from "./model-registry.ts";

/** What the main thread and the model thread say to each other, and the memory that they share. */

/** What a model thread is started with. */
export const workerDataSchema = z.object({
  models: z.array(z.string()).describe("configured folders and files, whose hashes are still to be found"),
  registered: z.array(registeredModelSchema).describe("models whose hashes are known"),
  provider: z.enum(executionProviderNames),
  cacheDir: z.string(),
  memoryBudget: z.number().positive().describe("bytes that the weights of loaded models may take"),
  cacheBudget: z.number().positive().describe("bytes that files made from models and adapters may take in the cache directory"),
  threads: z.int().positive().optional(),
  shared: z.instanceof(SharedArrayBuffer),
});
export type WorkerData = z.infer<typeof workerDataSchema>;

/** Most executions of a batch: what the protocol allows. */
export const MAX_BATCH = 64;

/** Cells of the shared Uint32Array. */
export const cells = {
  /** Steps of the model thread: a computation that no longer raises it is hung. */
  counter: 0,
  /** Number of the batch that has to stop before its next step. */
  canceled: 1,
  /** 1 while a model is loaded: no step is taken meanwhile, and none is missed. */
  loading: 2,
  /** Number of the training that has to stop before its next step; pictures may be drawn between its steps. */
  canceledTraining: 3,
  /** From here on one cell per item of a batch: number of the task whose item has to stop. */
  canceledItems: 4,
} as const;
export const SHARED_BYTES = 4 * (cells.canceledItems + MAX_BATCH);

/** Whether an item of a batch, or the batch, has to stop. */
export function isCanceled(memory: Uint32Array, task: number, item: number): boolean {
  return Atomics.load(memory, cells.canceled) === task || Atomics.load(memory, cells.canceledItems + item) === task;
}

export function isTrainingCanceled(memory: Uint32Array, task: number): boolean {
  return Atomics.load(memory, cells.canceledTraining) === task;
}

const task = z.int().positive();
const item = z.int().min(0).describe("index in the batch");

/** Where an execution's fetched files lie. */
const fetchedSchema = z.object({
  files: z.record(sha256Schema, z.string()).describe("path by SHA-256"),
  adapters: z.record(contentHashSchema, z.string()).describe("path of the file, or of the folder where they are several, by content hash"),
});
export type Fetched = z.infer<typeof fetchedSchema>;

const batchItemSchema = z.object({ request: pictureRequestSchema, inputs: fetchedSchema });
export type BatchItem = z.infer<typeof batchItemSchema>;

/** A training as the thread gets it. */
const trainingTaskSchema = z.object({
  request: trainingRequestSchema,
  inputs: fetchedSchema,
  folder: z.string().describe("existing folder of its own: its checkpoint and what it makes"),
  resumeFrom: z.string().nullable().describe("path of the checkpoint to go on from"),
  deadline: z.int().describe("milliseconds since 1970 at which it ends in good order"),
});
export type TrainingTask = z.infer<typeof trainingTaskSchema>;

export const toWorkerSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("compute"), task, items: z.array(batchItemSchema).min(1).max(MAX_BATCH) }),
  z.object({ type: z.literal("train"), task, training: trainingTaskSchema }),
  z.object({ type: z.literal("registered"), models: z.array(registeredModelSchema) }),
]);
export type ToWorker = z.infer<typeof toWorkerSchema>;

const bytes = z.custom<Uint8Array<ArrayBuffer>>(
  value => value instanceof Uint8Array && value.buffer instanceof ArrayBuffer,
  "expected bytes",
);

export const fromWorkerSchema = z.discriminatedUnion("type", [
  z
    .object({ type: z.literal("loaded"), models: z.array(registeredModelSchema) })
    .describe("the thread is up, with these configured models"),
  z.object({ type: z.literal("load_failed"), message: z.string(), disk_full: z.boolean() }),
  z.object({ type: z.literal("note"), level: z.enum(["info", "error"]), message: z.string(), fields: z.record(z.string(), z.unknown()) }),
  z.object({ type: z.literal("resident"), hashes: z.array(contentHashSchema).describe("latest first") }),
  progressReportSchema.extend({ type: z.literal("progress"), task, item }),
  z.object({
    type: z.literal("picture"),
    task,
    item,
    picture: z.object({ bytes, mediaType: z.string(), width: z.int(), height: z.int(), sha256: z.string() }),
  }),
  z.object({ type: z.literal("event"), task, item, event: trainingEventSchema }).describe("of a training"),
  z.object({ type: z.literal("checkpoint"), task, item, path: z.string() }).describe("a later checkpoint takes the path by renaming"),
  z.object({ type: z.literal("trained"), task, item, result: trainingResultSchema }),
  z.object({
    type: z.literal("failed"),
    task,
    item,
    code: errorCodeSchema,
    message: z.string(),
    retryable: z.boolean(),
    detail: z.string().describe("for the log"),
  }),
  z.object({ type: z.literal("canceled"), task, item }),
  z.object({ type: z.literal("done"), task }).describe("the thread is at rest; every item has had its answer"),
]);
export type FromWorker = z.infer<typeof fromWorkerSchema>;
