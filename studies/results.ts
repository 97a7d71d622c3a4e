import { z } from "zod";
import { trainingReportSchema, trainingScoresSchema } from "../shared/training.ts";

/** What a study keeps of one training. */
export const trainedSchema = z.object({
  token: z.string(),
  report: trainingReportSchema,
  /** Names of the exported files, kept beside. */
  files: z.array(z.string()).min(1),
});
export type Trained = z.infer<typeof trainedSchema>;

/** Where scores were computed: by a process that knows the exported file alone, or by the training itself at its end. */
export const scoredSchema = z.object({ by: z.enum(["serving process", "training"]), scores: trainingScoresSchema });
export type Scored = z.infer<typeof scoredSchema>;

/** A control of a concept and why it did not count as learned; empty: it did, which is a fault of the study. */
export const controlSchema = z.object({
  control: z.enum(["learning rate 0", "trained on the base's own pictures", "another concept's adapter"]),
  scores: trainingScoresSchema,
  shortfalls: z.array(z.string()),
});
export type Control = z.infer<typeof controlSchema>;

/** Mean squared picture difference to held-out pictures, 0 .. 1, with their own conditions and with those of others. */
export const pairResultSchema = z.object({
  right: z.array(z.number()),
  shuffled: z.array(z.number()),
  /** Mean of shuffled - right over pictures, and its 95 % bootstrap interval. */
  advantage: z.object({ value: z.number(), low: z.number(), high: z.number() }),
});
export type PairResult = z.infer<typeof pairResultSchema>;
