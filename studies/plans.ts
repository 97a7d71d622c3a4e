import type { TrainingCreate } from "../shared/training-api.ts";

/** Methods that learn one concept from its eight pictures. */
export type ConceptMethod = "lora" | "textual-inversion" | "dreambooth";

type Plan = Pick<TrainingCreate, "settings" | "steps" | "batch_size" | "caption_dropout" | "optimizer" | "loss"> & { budget: number };

/** Every timestep weighs the same, as the settings below were found. */
const loss = { min_snr_gamma: null };

/**
 * Settings found by trying on the pocket model. Low-rank pairs have bound the token after some thirty steps; from sixty on, the gain
 * grows further without it, and another object's adapter gains more than half as much. A text encoder that learns twenty times as fast
 * as the UNet gains twice as much, but as much without the token for some objects. A full DreamBooth drifts at 2e-5 already.
 * An inversion begins as a word that says nothing to the model: one that it knows, such as sphere, gains by itself, untrained.
 */
export const conceptPlans = {
  lora: ({ isObject }) => ({
    settings: { method: "lora", rank: 8, alpha: 8, targets: ["attention"], text_encoder: true, dora: false, start_from: null },
    steps: isObject ? 30 : 40,
    batch_size: 4,
    caption_dropout: 0,
    loss,
    optimizer: { learning_rate: 3e-4, text_learning_rate: null, schedule: "constant", warmup_steps: 0 },
    budget: 180,
  }),
  "textual-inversion": ({ isObject }) => ({
    settings: { method: "textual-inversion", vectors: isObject ? 2 : 4, initial: isObject ? "toy" : "style" },
    steps: 300,
    batch_size: 4,
    caption_dropout: 0,
    loss,
    optimizer: { learning_rate: 1e-2, schedule: "constant", warmup_steps: 0, weight_decay: 0 },
    budget: 180,
  }),
  dreambooth: ({ isObject }) => ({
    settings: { method: "dreambooth", text_encoder: true, prior_pictures: 32, prior_steps: 12, extract_rank: 32 },
    steps: isObject ? 100 : 40,
    batch_size: 4,
    caption_dropout: 0,
    loss,
    optimizer: { learning_rate: 1e-5, text_learning_rate: null, schedule: "constant", warmup_steps: 0 },
    budget: 300,
  }),
} as const satisfies Record<ConceptMethod, (concept: { isObject: boolean }) => Plan>;

/** All objects in one training: LoRAs that a net predicts. */
export const matrixPlan = {
  settings: { method: "hyper-lora", rank: 4, fine_tune_steps: 0, start_from: null },
  steps: 400,
  batch_size: 8,
  caption_dropout: 0,
  loss,
  optimizer: { learning_rate: 1e-3, schedule: "cosine", warmup_steps: 30 },
  budget: 900,
} as const satisfies Plan;

/** Methods that learn what a condition picture means, from pairs of the world. */
export type PairMethod = "controlnet-edges" | "controlnet-depth" | "ip-adapter";

const controlnetPlan = {
  settings: { method: "controlnet", preprocess: null, condition_dropout: 0.1 },
  steps: 1000,
  batch_size: 8,
  caption_dropout: 0.3,
  loss,
  optimizer: { learning_rate: 1e-3, schedule: "constant", warmup_steps: 50 },
  budget: 900,
} as const satisfies Plan;

export const pairPlans = {
  "controlnet-edges": controlnetPlan,
  "controlnet-depth": controlnetPlan,
  "ip-adapter": {
    settings: { method: "ip-adapter", variant: "base", tokens: 4, picture_dropout: 0.1, image_encoder: "pocket-clip" },
    steps: 1000,
    batch_size: 8,
    caption_dropout: 0.1,
    loss,
    optimizer: { learning_rate: 3e-3, schedule: "cosine", warmup_steps: 50 },
    budget: 900,
  },
} as const satisfies Record<PairMethod, Plan>;
