import { z } from "zod";
import { PROTOCOL_VERSION } from "./engine.ts";
import { errorCodeSchema } from "./errors.ts";
import { contentHashSchema, idSchema, sha256Schema } from "./names.ts";
import { previewSchema, trainingEventSchema, trainingResultSchema } from "./training.ts";

/**
 * Messages on the runner's WebSocket, JSON text, each with `v` and `type`.
 * A lease is (execution, epoch). Every message about one is safe to send twice.
 */
const lease = { execution: idSchema("execution"), epoch: z.int().positive() };
const leaseSchema = z.strictObject(lease);
export type Lease = z.infer<typeof leaseSchema>;
const v = { v: z.literal(PROTOCOL_VERSION) };

/** Uploaded result of an execution; the file lies at the grant's result key. */
export const resultSchema = z.strictObject({
  sha256: sha256Schema,
  bytes: z.int().positive(),
  width: z.int().positive(),
  height: z.int().positive(),
});
export type Result = z.infer<typeof resultSchema>;

/** What an execution ends with: a picture's file, or what a training made. */
export const executionResultSchema = z.union([resultSchema, trainingResultSchema]);
export type ExecutionResult = z.infer<typeof executionResultSchema>;

/** What a runner says. */
export const runnerMessageSchema = z.discriminatedUnion("type", [
  z
    .strictObject({
      ...v,
      type: z.literal("hello"),
      instance: idSchema("instance"),
      engine_version: z.int(),
      provider: z.string(),
      models: z.array(contentHashSchema).describe("hashes that it holds or can load"),
      max_batch: z.int().min(1).max(64).describe("most executions of one batch key that it computes together"),
      trains: z.boolean().optional().describe("whether it takes trainings; absent: it does not"),
      leases: z.array(leaseSchema).describe("leases that it still holds, computing or waiting for a commit"),
    })
    .describe("first message on every socket, also after a cut"),
  z
    .strictObject({
      ...v,
      type: z.literal("ready"),
      n: z.int().min(0).max(64),
      resident: z.array(contentHashSchema).max(256).describe("models and adapters that lie ready in its memory, latest first"),
    })
    .describe(
      "how many more grants it takes now, a grant being one execution or one batch; replaces what it said before. While it computes a training it says 0 unless it makes pictures between the steps",
    ),
  z.strictObject({ ...v, type: z.literal("accept"), leases: z.array(leaseSchema).min(1) }).describe("a grant was verified and taken"),
  z
    .strictObject({ ...v, type: z.literal("reject"), leases: z.array(leaseSchema).min(1), reason: z.string().max(500) })
    .describe("a grant was refused; nothing is computed"),
  z
    .strictObject({ ...v, type: z.literal("heartbeat"), leases: z.array(z.strictObject({ ...lease, counter: z.int().min(0) })) })
    .describe("counter: steps of the model thread, so that a hung computation shows"),
  z
    .strictObject({ ...v, type: z.literal("complete"), ...lease, result: executionResultSchema })
    .describe("uploaded; sent again on every new socket until answered"),
  z
    .strictObject({ ...v, type: z.literal("fail"), ...lease, code: errorCodeSchema, message: z.string().max(2000), retryable: z.boolean() })
    .describe("not retryable: the same input fails everywhere"),
  z
    .strictObject({ ...v, type: z.literal("release"), leases: z.array(leaseSchema) })
    .describe("handed back uncomputed, as a draining runner does; does not count as an attempt"),
]);
export type RunnerMessage = z.infer<typeof runnerMessageSchema>;

/** What the dispatcher says. */
export const dispatcherMessageSchema = z.discriminatedUnion("type", [
  z
    .strictObject({
      ...v,
      type: z.literal("welcome"),
      heartbeat_ms: z.int().positive(),
      leases: z.array(z.strictObject({ ...lease, verdict: z.enum(["keep", "abandon"]) })),
    })
    .describe("answers hello, with a verdict on every lease that it named"),
  z
    .strictObject({
      ...v,
      type: z.literal("lease"),
      grant: z.string().describe("JWS, verified against the configured public keys before anything is computed"),
      executions: z
        .array(
          z.strictObject({ ...lease, params: z.string().describe("canonical picture or training request; its hash stands in the grant") }),
        )
        .min(1)
        .describe("several where they share a batch key: they are computed together"),
    })
    .describe("to be answered by accept or reject within the acknowledgement time"),
  z
    .strictObject({ ...v, type: z.literal("cancel"), leases: z.array(leaseSchema).min(1) })
    .describe("stop: canceled, expired or taken away"),
  z.strictObject({ ...v, type: z.literal("committed"), ...lease }).describe("the result is stored; the lease is over"),
  z.strictObject({ ...v, type: z.literal("refused"), ...lease, reason: z.string() }).describe("the lease is over, nothing of it was taken"),
  z.strictObject({ ...v, type: z.literal("error"), code: errorCodeSchema, message: z.string() }).describe("the socket is closed after it"),
]);
export type DispatcherMessage = z.infer<typeof dispatcherMessageSchema>;

/** Body of a progress post, sent under the grant's progress capability. */
export const progressReportSchema = z.strictObject({
  step: z.int().min(0),
  steps: z.int().positive(),
  preview: previewSchema.optional(),
});
export type ProgressReport = z.infer<typeof progressReportSchema>;

/** Body of a training's progress post: what happened since the last one. The last step in it is the job's progress. */
export const trainingProgressSchema = z.strictObject({ events: z.array(trainingEventSchema).min(1).max(32) });
export type TrainingProgress = z.infer<typeof trainingProgressSchema>;

/** HTTP and WebSocket paths that runners use; each carries its own token in the Authorization header. */
export const runnerPaths = {
  socket: "/runner/v1/socket",
  object: (key: string) => `/runner/v1/objects/${key}`,
  progress: (execution: string) => `/runner/v1/executions/${execution}/progress`,
} as const;

/** Staging key of an execution's result: one per lease, so that a late upload never meets a newer one. */
export function stagingKey(execution: string, epoch: number): string {
  return `staging/${execution}/${epoch}/result`;
}

/** Staging key of a file of a training; without a path, what a capability for all of them names. */
export function trainingStagingKey(execution: string, epoch: number, path = ""): string {
  return `staging/${execution}/${epoch}/${path}`;
}

/** Object key of a training's checkpoint: one per epoch, so that a late upload never takes the place of a newer one. Without an epoch: the latest. */
export function checkpointKey(execution: string, epoch?: number): string {
  return epoch === undefined ? `checkpoints/${execution}` : `checkpoints/${execution}/${epoch}`;
}
