import { z } from "zod";
import { pictureLossesSchema, trainingReportSchema, trainingScoresSchema } from "../shared/training.ts";

const curveSchema = z.array(z.tuple([z.int(), z.number()]));

/** What a study keeps of one training. */
export const trainedSchema = z.object({
  tokens: z.array(z.string()),
  report: trainingReportSchema,
  /** Names of the exported files, kept beside. */
  files: z.array(z.string()).min(1),
  /** From the request to the files, with loading, cached latents, prior pictures and samples. */
  wall_seconds: z.number(),
});
export type Trained = z.infer<typeof trainedSchema>;

/** What the serving product said of an exported file. */
export const evaluatedSchema = z.object({
  scores: trainingScoresSchema,
  picture_losses: z.array(pictureLossesSchema),
  wall_seconds: z.number(),
});
export type Evaluated = z.infer<typeof evaluatedSchema>;

/** A training's own figures, as the study shows them. */
export const costSchema = z.object({
  steps: z.int(),
  ended_by: z.string(),
  /** Of the steps alone. */
  seconds: z.number(),
  wall_seconds: z.number(),
  parameters: z.int(),
  peak_memory_bytes: z.int(),
  losses: curveSchema,
});
export type Cost = z.infer<typeof costSchema>;

/** Why something must not count as learned. */
export const controls = {
  "rate-0": "learning rate 0",
  "own-pictures": "trained on the base's own pictures",
  other: "another concept's adapter",
} as const;
export type Control = keyof typeof controls;

const rowSchema = z.object({
  concept: z.string(),
  token: z.string(),
  cost: costSchema,
  scores: trainingScoresSchema,
});
export type Row = z.infer<typeof rowSchema>;

const controlRowSchema = rowSchema.omit({ cost: true }).extend({ control: z.enum(["rate-0", "own-pictures", "other"]) });
export type ControlRow = z.infer<typeof controlRowSchema>;

const intervalSchema = z.object({ value: z.number(), low: z.number(), high: z.number() });

export const pairResultSchema = z.object({
  kind: z.literal("pairs"),
  cost: costSchema,
  /** Against the base, with each picture's own condition and with another's. */
  right: intervalSchema,
  shuffled: intervalSchema,
  /** 1 - loss with the right condition / loss with a shuffled one, over the same pictures and noises. */
  advantage: intervalSchema,
  /** Mean squared difference of drawn pictures to the true ones, 0 .. 1. */
  drawn: z.object({ right: z.number(), shuffled: z.number(), base: z.number(), difference: intervalSchema }),
  control: z.object({ advantage: intervalSchema }).nullable(),
});

/** The results of one study, committed as docs/study/<study>.jsonl, one line: docs/study.md is written from nothing else. */
export const studyResultSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("concepts"), rows: z.array(rowSchema), controls: z.array(controlRowSchema) }),
  z.object({
    kind: z.literal("matrix"),
    cost: costSchema,
    concepts: z.array(z.string()),
    tokens: z.array(z.string()),
    /** Gain of each concept's weights (row) on each concept's held-out pictures (column). */
    gains: z.array(z.array(z.number())),
    control: z.object({ gains: z.array(z.array(z.number())) }).nullable(),
  }),
  pairResultSchema,
]);
export type StudyResult = z.infer<typeof studyResultSchema>;
export type ConceptResult = Extract<StudyResult, { kind: "concepts" }>;
export type MatrixResult = Extract<StudyResult, { kind: "matrix" }>;
export type PairResult = Extract<StudyResult, { kind: "pairs" }>;
