import { z } from "zod";
import { problemSchema } from "./errors.ts";
import { jobStatuses, trainingJobViewSchema } from "./job.ts";
import { adapterNameSchema, idPrefixes, idSchema, modelNameSchema, sha256Schema } from "./names.ts";
import { seedSchema } from "./picture.ts";
import {
  datasetItemSchema,
  lossSchema,
  methodSettingsSchema,
  optimizerSchema,
  scoringSchema,
  trainingFileSchema,
  trainingReportSchema,
  trainingRequestSchema,
  trainingSamplingSchema,
} from "./training.ts";

/** Datasets and trainings as clients send and see them. */

export const MAX_DATASET_PICTURES = 1000;

const pictureReference = z
  .string()
  .regex(
    new RegExp(`^(${idPrefixes.upload}|${idPrefixes.picture})_[0-7][0-9A-HJKMNP-TV-Z]{25}$`),
    "expected the id upl_… of an upload or pic_… of a picture",
  );
const datasetNameSchema = z.string().min(1).max(100);

/** What is said of a picture of a dataset. */
const said = {
  caption: datasetItemSchema.shape.caption,
  split: datasetItemSchema.shape.split.describe(
    "only `train` is learned from: `validation` chooses the weights that are kept, scores are taken on `test`, and `prior` are generic pictures that must not be forgotten",
  ),
  concept: datasetItemSchema.shape.concept.describe("index into the training's concepts"),
};
const saidByDefault = { caption: said.caption.default(""), split: said.split.default("train"), concept: said.concept.default(0) };

/** Body of `POST /v1/datasets` where its pictures are there already. */
export const datasetRequestSchema = z
  .strictObject({
    name: datasetNameSchema,
    items: z
      .array(
        z.strictObject({
          ...saidByDefault,
          image: pictureReference,
          mask: pictureReference.optional().describe("loss weights, black to white"),
          condition: pictureReference.optional().describe("ControlNet: the control map; IP-Adapter: the reference"),
        }),
      )
      .min(1)
      .max(MAX_DATASET_PICTURES),
  })
  .meta({ id: "DatasetRequest" });
export type DatasetRequest = z.infer<typeof datasetRequestSchema>;

/** A line of metadata.jsonl in a form or zip, as Hugging Face's ImageFolder has it; masks and conditions are names of files, too. */
export const datasetLineSchema = z
  .object({
    ...saidByDefault,
    file_name: z.string().min(1),
    text: z.string().max(2000).optional().describe("the caption, under ImageFolder's name"),
    mask: z.string().optional(),
    condition: z.string().optional(),
  })
  .transform(({ text, ...line }) => ({ ...line, caption: line.caption || (text ?? "") }));
export type DatasetLine = z.infer<typeof datasetLineSchema>;

/** Body of `PATCH /v1/datasets/{id}/items/{sha256}`; what is absent stays. */
export const datasetItemPatchSchema = z
  .strictObject({
    ...said,
    mask: sha256Schema.nullable().describe("a file of the dataset; null: none"),
    condition: sha256Schema.nullable().describe("a file of the dataset; null: none"),
  })
  .partial()
  .meta({ id: "DatasetItemPatch" });
export type DatasetItemPatch = z.infer<typeof datasetItemPatchSchema>;

export const datasetItemViewSchema = datasetItemSchema.extend({ bytes: z.int(), media_type: z.string() }).meta({ id: "DatasetItem" });
export type DatasetItemView = z.infer<typeof datasetItemViewSchema>;

const datasetSummary = {
  id: idSchema("dataset"),
  object: z.literal("dataset"),
  name: z.string(),
  created_at: z.iso.datetime(),
  pictures: z.int(),
};
export const datasetSummarySchema = z.object(datasetSummary).meta({ id: "DatasetSummary" });
export type DatasetSummary = z.infer<typeof datasetSummarySchema>;
export const datasetViewSchema = z.object({ ...datasetSummary, items: z.array(datasetItemViewSchema) }).meta({ id: "Dataset" });
export type DatasetView = z.infer<typeof datasetViewSchema>;

const [lora, inversion, dreambooth, hypernetwork, hyperLora, ipAdapter, controlnet, evaluation] = methodSettingsSchema.options;
/** A method and what of its settings differs from the defaults. */
const statedSettingsSchema = z.discriminatedUnion("method", [
  lora
    .extend({ start_from: z.string().nullable().describe("name, id or content hash of a LoRA to go on from") })
    .partial()
    .required({ method: true }),
  inversion.partial().required({ method: true }),
  dreambooth.partial().required({ method: true }),
  hypernetwork.partial().required({ method: true }),
  hyperLora
    .extend({
      start_from: idSchema("training")
        .nullable()
        .describe(
          "a hyper-lora training whose net goes on; with `steps` 0, which is then the default, it only predicts: concepts that it knows by their tokens as before, others from the dataset's pictures",
        ),
    })
    .partial()
    .required({ method: true }),
  ipAdapter
    .extend({
      image_encoder: z
        .string()
        .nullable()
        .describe("name, id or content hash of an adapter that is, or holds, the CLIP vision encoder; needed"),
    })
    .partial()
    .required({ method: true }),
  controlnet.partial().required({ method: true }),
  evaluation.omit({ kind: true }).extend({
    adapter: z.string().describe("name, id or content hash of the adapter that is scored as it is served; nothing is trained"),
  }),
]);

const asked = trainingRequestSchema.shape;
const MAX_TRAINING_S = 24 * 3600;

/** Body of `POST /v1/trainings`. What is absent takes the default of method and model family. */
export const trainingCreateSchema = z
  .strictObject({
    name: adapterNameSchema.max(50).describe("of what comes out of it"),
    model: modelNameSchema,
    dataset: idSchema("dataset"),
    settings: statedSettingsSchema,
    concepts: z
      .array(asked.concepts.element.partial({ class_prompt: true }))
      .min(1)
      .max(64)
      .optional()
      .describe("absent: one, whose token is the name"),
    resolution: asked.resolution.optional(),
    steps: asked.steps.optional(),
    batch_size: asked.batch_size.optional(),
    accumulation: asked.accumulation.optional(),
    caption_dropout: asked.caption_dropout.optional(),
    flip: asked.flip.optional(),
    ema: asked.ema.optional(),
    gradient_checkpointing: asked.gradient_checkpointing.optional(),
    optimizer: optimizerSchema.partial().optional(),
    loss: lossSchema.partial().optional(),
    seed: seedSchema.optional(),
    validate_every: asked.validate_every.optional(),
    checkpoint_every: asked.checkpoint_every.optional(),
    sample_every: asked.sample_every.optional(),
    sample_prompts: asked.sample_prompts.default([]),
    sampling: trainingSamplingSchema
      .partial()
      .optional()
      .describe("how samples and the pictures of scores are drawn; absent: the model's defaults"),
    scoring: scoringSchema.partial().optional().describe("what the scores of the report are taken on"),
    budget: z
      .int()
      .min(1)
      .max(MAX_TRAINING_S)
      .nullable()
      .default(null)
      .describe("seconds of computing after which it ends in good order; null: none"),
    deadline: z
      .int()
      .min(60)
      .max(MAX_TRAINING_S)
      .default(MAX_TRAINING_S)
      .describe("seconds from now, waiting included, after which it fails"),
    dry_run: z.boolean().default(false).describe("only a short calibration, which answers time and memory"),
  })
  .meta({ id: "TrainingRequest" });
export type TrainingCreate = z.infer<typeof trainingCreateSchema>;

/** A training's request with its defaults filled in, as it is kept and shown; its items are the dataset's as they were. */
export const resolvedTrainingSchema = trainingRequestSchema.omit({ items: true, model: true, engine_version: true }).extend({
  model: z.string(),
  dataset: idSchema("dataset"),
});
export type ResolvedTraining = z.infer<typeof resolvedTrainingSchema>;

export const trainingViewSchema = z
  .object({
    id: idSchema("training"),
    object: z.literal("training"),
    name: z.string(),
    job: trainingJobViewSchema,
    status: z.enum(jobStatuses),
    created_at: z.iso.datetime(),
    model: z.string(),
    model_hash: z.string(),
    dataset: idSchema("dataset"),
    request: resolvedTrainingSchema,
    report: trainingReportSchema.nullable().describe("once it has a result"),
    estimate: z
      .object({
        steps: z.int(),
        seconds: z.number().describe("of steps, samples and scores together"),
        memory_bytes: z.int(),
      })
      .nullable()
      .describe("of the whole training, from the calibration of a dry run"),
    adapters: z.array(idSchema("adapter")).describe("what it made, ready to be used"),
    files: z
      .array(trainingFileSchema.extend({ url: z.string().nullable().describe("expiring signed URL") }))
      .describe("of a training that was canceled or has failed: its last checkpoint, for a day"),
    error: problemSchema.nullable(),
  })
  .meta({ id: "Training" });
export type TrainingView = z.infer<typeof trainingViewSchema>;
