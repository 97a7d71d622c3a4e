import { z } from "zod";
import { jobErrorSchema, problemSchema } from "./errors.ts";
import { resolvedRequestSchema } from "./generation.ts";
import { idSchema, sha256Schema } from "./names.ts";
import { seedSchema } from "./picture.ts";
import { trainingEventSchema } from "./training.ts";

export const jobStatuses = ["queued", "running", "succeeded", "failed", "canceled"] as const;
export type JobStatus = (typeof jobStatuses)[number];
/** A job in one of these never changes again. */
export const terminalStatuses = ["succeeded", "failed", "canceled"] as const satisfies readonly JobStatus[];
export function isTerminal(status: JobStatus): boolean {
  return (terminalStatuses as readonly JobStatus[]).includes(status);
}

/** A picture of a generation as a client sees it. `url` or `b64` only once it exists. */
export const pictureViewSchema = z
  .object({
    index: z.int().min(0),
    id: idSchema("picture").nullable(),
    status: z.enum(jobStatuses),
    seed: seedSchema,
    width: z.int(),
    height: z.int(),
    cached: z.boolean().describe("true where nothing was computed for this request"),
    sha256: sha256Schema.nullable().describe("hash of the file"),
    bytes: z.int().nullable(),
    media_type: z.string(),
    url: z.string().nullable().describe("expiring signed URL of this one picture"),
    b64: z.string().optional(),
  })
  .meta({ id: "Picture" });
export type PictureView = z.infer<typeof pictureViewSchema>;

/** What a job waits for. */
export const jobViewSchema = z
  .object({
    id: idSchema("job"),
    object: z.literal("job"),
    kind: z.literal("generation"),
    generation: idSchema("generation"),
    status: z.enum(jobStatuses),
    created_at: z.iso.datetime(),
    finished_at: z.iso.datetime().nullable(),
    deadline_at: z.iso.datetime(),
    queue_position: z.int().min(0).nullable().describe("executions before this job's first waiting one; null when none waits"),
    no_runner: z.boolean().describe("true while the job waits and no runner is connected that could take it"),
    progress: z.object({ step: z.int(), steps: z.int() }).nullable().describe("summed over the pictures that are computed"),
    error: jobErrorSchema.nullable(),
  })
  .meta({ id: "Job" });
export type JobView = z.infer<typeof jobViewSchema>;

/** The job of a training; its progress is in steps of the training. */
export const trainingJobViewSchema = jobViewSchema
  .omit({ generation: true })
  .extend({ kind: z.literal("training"), training: idSchema("training") })
  .meta({ id: "TrainingJob" });
export type TrainingJobView = z.infer<typeof trainingJobViewSchema>;

export const anyJobViewSchema = z.discriminatedUnion("kind", [jobViewSchema, trainingJobViewSchema]);
export type AnyJobView = z.infer<typeof anyJobViewSchema>;

/** A generation: the request with its defaults filled in, its job, its pictures. */
export const generationViewSchema = z
  .object({
    id: idSchema("generation"),
    object: z.literal("generation"),
    job: jobViewSchema,
    status: z.enum(jobStatuses),
    created_at: z.iso.datetime(),
    model: z.string(),
    model_hash: z.string(),
    request: resolvedRequestSchema,
    pictures: z.array(pictureViewSchema),
    error: problemSchema.nullable(),
  })
  .meta({ id: "Generation" });
export type GenerationView = z.infer<typeof generationViewSchema>;

const [stepEvent, validationEvent, sampleEvent, phaseEvent] = trainingEventSchema.options;

/** Events of a job, in the order in which they are streamed. The last one has a terminal type. */
export const jobEventSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("queued"), at: z.iso.datetime() }),
  z.object({ type: z.literal("running"), at: z.iso.datetime(), execution: idSchema("execution"), epoch: z.int() }),
  z.object({
    type: z.literal("progress"),
    at: z.iso.datetime(),
    execution: idSchema("execution"),
    index: z.int().min(0).describe("which picture of the job"),
    step: z.int(),
    steps: z.int(),
    preview: z.string().max(65536).optional().describe("data: URL of a small picture"),
  }),
  stepEvent.extend({ at: z.iso.datetime() }),
  validationEvent.extend({ at: z.iso.datetime() }),
  sampleEvent.extend({ at: z.iso.datetime() }),
  phaseEvent.extend({ at: z.iso.datetime() }),
  z.object({ type: z.literal("picture"), at: z.iso.datetime(), index: z.int().min(0) }),
  z.object({ type: z.enum(terminalStatuses), at: z.iso.datetime(), error: jobErrorSchema.nullable() }),
]);
export type JobEvent = z.infer<typeof jobEventSchema>;
