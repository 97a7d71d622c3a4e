import { z } from "zod";
import { adapterFileSchema, adapterKindSchema } from "./adapter.ts";
import { type ModelFamily, type ModelManifest, modelManifestSchema } from "./model.ts";
import { contentHashSchema, sha256Schema } from "./names.ts";
import { seedSchema } from "./picture.ts";

/**
 * What a training learns by; one row of every table over methods. `hypernetwork` is A1111's kind, `hyper-lora` predicts LoRA weights,
 * `evaluation` learns nothing: it scores an adapter that is there, from its file alone.
 */
export const trainingMethods = [
  "lora",
  "textual-inversion",
  "dreambooth",
  "hypernetwork",
  "hyper-lora",
  "ip-adapter",
  "controlnet",
  "evaluation",
] as const;
export const trainingMethodSchema = z.enum(trainingMethods);
export type TrainingMethod = z.infer<typeof trainingMethodSchema>;

/** Which of a UNet's layers take low-rank pairs. */
export const loraTargets = ["attention", "feed-forward", "convolution"] as const;
export type LoraTargetName = (typeof loraTargets)[number];

/** AdamW (Loshchilov and Hutter 2019) with decoupled decay and bias correction. */
export const optimizerSchema = z.strictObject({
  name: z.literal("adamw"),
  learning_rate: z.number().min(0).max(1),
  /** Of text encoders; null: the same. */
  text_learning_rate: z.number().min(0).max(1).nullable(),
  betas: z.tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)]),
  weight_decay: z.number().min(0).max(1),
  epsilon: z.number().positive().max(1e-3),
  /** Of the global L2 norm; null: none. */
  clip_norm: z.number().positive().nullable(),
  moments: z.enum(["float32", "8-bit"]),
  schedule: z.enum(["constant", "linear", "cosine"]),
  warmup_steps: z.int().min(0),
});
export type OptimizerSettings = z.infer<typeof optimizerSchema>;

/** What the loss is of; the same for every method. */
export const lossSchema = z.strictObject({
  /** Hang et al. 2023; null: every timestep weighs the same. */
  min_snr_gamma: z.number().positive().nullable(),
  /** Guttenberg 2023: a share of noise that is one number per item and channel. */
  noise_offset: z.number().min(0).max(1),
  /** Lin et al. 2024; null: as the base model's scheduler has it. */
  zero_terminal_snr: z.boolean().nullable(),
  timestep_sampling: z.enum(["uniform", "logit-normal"]),
  /** Inclusive range that timesteps are drawn from. */
  timesteps: z.tuple([z.int().min(0), z.int().max(999)]),
  /** DreamBooth's weight of the prior pictures' loss (Ruiz et al. 2023). */
  prior_weight: z.number().min(0).max(10),
});
export type LossSettings = z.infer<typeof lossSchema>;

const conceptSchema = z.strictObject({
  /** The rare word, or the new token of an inversion. */
  token: z.string().min(1).max(100),
  /** Such as "toy": what the prior pictures show, and what scores read in the place of the token. */
  class_prompt: z.string().max(1000).nullable(),
});

/** By method: what it has beside the rest. */
export const methodSettingsSchema = z.discriminatedUnion("method", [
  z.strictObject({
    method: z.literal("lora"),
    rank: z.int().min(1).max(256),
    alpha: z.number().positive(),
    targets: z.array(z.enum(loraTargets)).min(1),
    text_encoder: z.boolean(),
    dora: z.boolean(),
    /** An uploaded LoRA to go on from. */
    start_from: contentHashSchema.nullable(),
  }),
  z.strictObject({
    method: z.literal("textual-inversion"),
    vectors: z.int().min(1).max(32),
    /** Words whose vectors the new ones start as, repeated as needed. */
    initial: z.string().min(1).max(200),
  }),
  z.strictObject({
    method: z.literal("dreambooth"),
    text_encoder: z.boolean(),
    prior_pictures: z.int().min(0).max(1000),
    prior_steps: z.int().min(1).max(100),
    /** Rank of the difference that is extracted; null: the full difference. */
    extract_rank: z.int().min(1).max(256).nullable(),
  }),
  z.strictObject({
    method: z.literal("hypernetwork"),
    layer_structure: z.array(z.number().positive().max(8)).min(2).max(8),
    activation: z.enum(["linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid"]),
    layer_norm: z.boolean(),
    activate_output: z.boolean(),
  }),
  z.strictObject({
    method: z.literal("hyper-lora"),
    rank: z.int().min(1).max(16),
    /** Steps of LoRA training from the prediction for each concept, after all others; 0: none. */
    fine_tune_steps: z.int().min(0).max(1000),
    /** Of those steps, at a constant rate. */
    fine_tune_learning_rate: z.number().min(0).max(1),
    /** The file of a net to go on from. Concepts that it does not know begin with their pictures' code. */
    start_from: sha256Schema.nullable(),
  }),
  z.strictObject({
    method: z.literal("ip-adapter"),
    variant: z.enum(["base", "plus"]),
    tokens: z.int().min(1).max(64),
    picture_dropout: z.number().min(0).max(1),
    /** The adapter that holds the CLIP vision encoder. */
    image_encoder: contentHashSchema.nullable(),
  }),
  z.strictObject({
    method: z.literal("controlnet"),
    preprocess: z.string().nullable(),
    condition_dropout: z.number().min(0).max(1),
  }),
  z.strictObject({
    method: z.literal("evaluation"),
    /** What is scored, at full strength. */
    adapter: contentHashSchema.nullable(),
    kind: adapterKindSchema,
  }),
]);
export type MethodSettings = z.infer<typeof methodSettingsSchema>;
export type MethodSettingsOf<M extends TrainingMethod> = Extract<MethodSettings, { method: M }>;

/** Where among its files a hyper-lora training has the net, which a later one can go on from. */
export const hyperLoraNet = "hyper-lora/net.safetensors";

/** A picture of a dataset, re-encoded as PNG. */
export const datasetItemSchema = z.strictObject({
  sha256: sha256Schema,
  caption: z.string().max(2000),
  width: z.int().positive(),
  height: z.int().positive(),
  /** Learned from; chooses the weights that are kept; scored; or generic: what must not be forgotten. */
  split: z.enum(["train", "validation", "test", "prior"]),
  /** Loss weights in 0..1, black to white. */
  mask: sha256Schema.nullable(),
  /** ControlNet: the control map. IP-Adapter: the reference, itself where absent. */
  condition: sha256Schema.nullable(),
  /** Index into `concepts`. */
  concept: z.int().min(0),
});
export type DatasetItem = z.infer<typeof datasetItemSchema>;

/** How the training's own pictures are drawn: samples, prior pictures, the ones that scores need. */
export const trainingSamplingSchema = modelManifestSchema.shape.defaults.omit({ width: true, height: true });
export type TrainingSampling = z.infer<typeof trainingSamplingSchema>;

/** What the report's scores are taken on. */
export const scoringSchema = z.strictObject({
  /** Held-out pictures that are scored at most; 0: no scores. */
  pictures: z.int().min(0).max(64),
  /** Generic pictures of the prior score at most: the dataset's of split `prior`, else drawn by the base model. 0: no prior score. */
  prior_pictures: z.int().min(0).max(64),
  /** What is drawn for it; empty: the concepts' class prompts and the captions without their tokens. */
  prior_prompts: z.array(z.string().max(1000)).max(64),
  /** Sampling steps of the pictures that are drawn for scores; null: the model's own, at most 20. */
  steps: z.int().min(1).max(150).nullable(),
});
export type ScoringSettings = z.infer<typeof scoringSchema>;
export const defaultScoring: ScoringSettings = { pictures: 8, prior_pictures: 8, prior_prompts: [], steps: null };

/** What a runner is asked to train: everything that determines the result. Names are resolved to content hashes. */
export const trainingRequestSchema = z.strictObject({
  engine_version: z.int(),
  model: contentHashSchema,
  settings: methodSettingsSchema,
  concepts: z.array(conceptSchema).min(1).max(64),
  items: z.array(datasetItemSchema).min(1).max(10_000),
  resolution: z.int().min(64).max(2048).multipleOf(8),
  steps: z.int().min(0).max(100_000),
  batch_size: z.int().min(1).max(64),
  accumulation: z.int().min(1).max(64),
  caption_dropout: z.number().min(0).max(1),
  flip: z.boolean(),
  /** Decay of the averaged weights, which are the ones kept; null: none. */
  ema: z.number().gt(0).lt(1).nullable(),
  gradient_checkpointing: z.boolean(),
  optimizer: optimizerSchema,
  loss: lossSchema,
  seed: seedSchema,
  validate_every: z.int().min(1),
  checkpoint_every: z.int().min(1),
  sample_every: z.int().min(1).nullable(),
  sample_prompts: z.array(z.string().max(1000)).max(8),
  /** Null: as the model's own files have it. */
  sampling: trainingSamplingSchema.nullable().default(null),
  scoring: scoringSchema.default(defaultScoring),
  /** Milliseconds of computing after which it ends in good order; null: none. */
  budget_ms: z.int().positive().nullable(),
  /** Only the calibration: how long and how much memory. */
  dry_run: z.boolean(),
});
export type TrainingRequest = z.infer<typeof trainingRequestSchema>;

/** What a client may leave out of a training: `trainingDefaults` of training-defaults.ts fills it in by method, family and the model's widths. */
export type TrainingDefaults = Pick<
  TrainingRequest,
  | "settings"
  | "resolution"
  | "steps"
  | "batch_size"
  | "accumulation"
  | "caption_dropout"
  | "flip"
  | "ema"
  | "gradient_checkpointing"
  | "optimizer"
  | "loss"
  | "validate_every"
  | "checkpoint_every"
  | "sample_every"
>;
/** The function that the API calls for it. */
export type TrainingDefaultsOf = (
  method: TrainingMethod,
  family: ModelFamily,
  widths: Pick<ModelManifest, "cross_attention_dim" | "text_widths" | "parameters" | "defaults" | "size_multiple">,
) => TrainingDefaults;

/** A small picture as data: URL. */
export const previewSchema = z
  .string()
  .max(65536)
  .regex(/^data:image\/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+$/);

/** What a training says of itself while it runs. */
export const trainingEventSchema = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("step"),
    step: z.int(),
    steps: z.int(),
    loss: z.number(),
    smoothed_loss: z.number(),
    learning_rate: z.number(),
    seconds_left: z.number(),
    memory_bytes: z.int(),
  }),
  z.object({ type: z.literal("validation"), step: z.int(), loss: z.number(), best: z.boolean() }),
  z.object({ type: z.literal("sample"), step: z.int(), prompt: z.string(), preview: previewSchema }),
  z.object({ type: z.literal("phase"), phase: z.enum(["loading", "caching", "prior", "calibrating", "training", "scoring", "exporting"]) }),
]);
export type TrainingEvent = z.infer<typeof trainingEventSchema>;

/** A number with its 95 % bootstrap interval. */
export const scoreSchema = z.object({ value: z.number(), low: z.number(), high: z.number() });
export type Score = z.infer<typeof scoreSchema>;

/**
 * `gain` = 1 - L_adapted / L_base on held-out pictures; `binding` = gain with the token minus gain without; `prior` = loss ratio on generic
 * pictures, null where none were wanted; `drift` of latents on prompts without the token.
 */
export const trainingScoresSchema = z.object({
  gain: scoreSchema,
  binding: scoreSchema,
  prior: scoreSchema.nullable(),
  drift: scoreSchema,
});
export type TrainingScores = z.infer<typeof trainingScoresSchema>;

/** The mean losses that a gain is made of, of one held-out picture. */
export const pictureLossesSchema = z.object({ sha256: sha256Schema, concept: z.int(), base: z.number(), adapted: z.number() });
export type PictureLosses = z.infer<typeof pictureLossesSchema>;

export const trainingReportSchema = z.object({
  method: trainingMethodSchema,
  dataset_hash: sha256Schema,
  steps: z.int(),
  ended_by: z.enum(["steps", "budget", "deadline", "cancel"]),
  losses: z.array(z.tuple([z.int(), z.number()])),
  validation: z.array(z.tuple([z.int(), z.number()])),
  best_step: z.int(),
  seconds: z.number(),
  seconds_per_step: z.number(),
  peak_memory_bytes: z.int(),
  trained_parameters: z.int(),
  scores: trainingScoresSchema.nullable(),
  /** Of the scored pictures, in their order. */
  picture_losses: z.array(pictureLossesSchema).optional(),
  /** Seconds of drawing samples and of scoring, beside `seconds`; of a dry run an estimate. */
  scoring_seconds: z.number().optional(),
  /** How many pictures did what. */
  pictures: z
    .object({
      train: z.int(),
      /** Chose the weights that were kept. */
      validation: z.int(),
      /** Scored. */
      test: z.int(),
      prior: z.int(),
      /** Whether the scored ones also chose, at other noises and timesteps. */
      validation_is_test: z.boolean(),
      /** Generic pictures: the dataset's, or the base model's own. */
      prior_from: z.enum(["dataset", "model"]).nullable(),
    })
    .optional(),
});
export type TrainingReport = z.infer<typeof trainingReportSchema>;

/** A file that a training made, staged at its path below the grant's result key. */
export const trainingFileSchema = z.strictObject({
  path: adapterFileSchema.shape.path,
  sha256: sha256Schema,
  bytes: z.int().positive(),
  media_type: z.enum(["application/x-safetensors", "application/json", "application/octet-stream", "image/png"]),
});
export type TrainingFile = z.infer<typeof trainingFileSchema>;

/** The media type that a training's file is stored under: its path tells. */
export function trainingMediaType(path: string): TrainingFile["media_type"] {
  const types = { safetensors: "application/x-safetensors", json: "application/json", png: "image/png" } as const;
  const ending = path.slice(path.lastIndexOf(".") + 1);
  return Object.hasOwn(types, ending) ? types[ending as keyof typeof types] : "application/octet-stream";
}

/** What a training ends with. A dry run has no files: its report says the time of a step and the memory. */
export const trainingResultSchema = z.strictObject({
  kind: z.literal("training"),
  files: z.array(trainingFileSchema).max(64),
  adapters: z
    .array(
      z.strictObject({
        suffix: z
          .string()
          .regex(/^[A-Za-z0-9._-]{1,40}$/)
          .nullable()
          .describe("follows the training's name and a hyphen, where a training makes several"),
        files: z.array(adapterFileSchema.shape.path).min(1).max(16).describe("paths among `files`"),
      }),
    )
    .max(64)
    .describe("what is registered as private adapters; none of a dry run or of a full model"),
  report: trainingReportSchema.describe("its curves thinned out so that the message stays below 512 KiB; whole in a file report.json"),
});
export type TrainingResult = z.infer<typeof trainingResultSchema>;
