/**
 * What a training has where its request leaves it open: what sd-scripts, diffusers' examples and A1111 recommend for published bases, and
 * what was found on the pocket model for models of its size (docs/training.md).
 */
import type { ModelFamily } from "./model.ts";
import type { LossSettings, MethodSettings, OptimizerSettings, TrainingDefaults, TrainingDefaultsOf, TrainingMethod } from "./training.ts";

interface Row {
  settings: MethodSettings;
  steps: number;
  batch: number;
  learningRate: number;
  textLearningRate?: number;
  weightDecay?: number;
  captionDropout?: number;
  schedule?: OptimizerSettings["schedule"];
  warmup?: number;
  ema?: number;
  /** Of mirror images: wrong for what has sides, so off but for methods that learn a general skill. */
  flip?: boolean;
}

/** For published bases: hundreds of millions of parameters, trained on hundreds of millions of pictures. */
const published = {
  lora: {
    settings: { method: "lora", rank: 16, alpha: 16, targets: ["attention"], text_encoder: false, dora: false, start_from: null },
    steps: 1500,
    batch: 1,
    learningRate: 1e-4,
    textLearningRate: 5e-5,
    schedule: "cosine",
    warmup: 50,
  },
  "textual-inversion": {
    settings: { method: "textual-inversion", vectors: 4, initial: "object" },
    steps: 3000,
    batch: 1,
    learningRate: 5e-3,
    weightDecay: 0,
  },
  dreambooth: {
    settings: { method: "dreambooth", text_encoder: false, prior_pictures: 100, prior_steps: 30, extract_rank: 64 },
    steps: 800,
    batch: 1,
    learningRate: 2e-6,
  },
  hypernetwork: {
    settings: { method: "hypernetwork", layer_structure: [1, 2, 1], activation: "linear", layer_norm: false, activate_output: false },
    steps: 5000,
    batch: 1,
    learningRate: 1e-5,
    weightDecay: 0,
  },
  "hyper-lora": {
    settings: { method: "hyper-lora", rank: 4, fine_tune_steps: 0, fine_tune_learning_rate: 1e-4, start_from: null },
    steps: 5000,
    batch: 4,
    learningRate: 5e-4,
    warmup: 100,
    schedule: "cosine",
  },
  "ip-adapter": {
    settings: { method: "ip-adapter", variant: "base", tokens: 4, picture_dropout: 0.05, image_encoder: null },
    steps: 20_000,
    batch: 4,
    learningRate: 1e-4,
    captionDropout: 0.05,
    warmup: 200,
    flip: true,
  },
  controlnet: {
    settings: { method: "controlnet", preprocess: null, condition_dropout: 0 },
    steps: 20_000,
    batch: 4,
    learningRate: 1e-5,
    captionDropout: 0.5,
    warmup: 200,
  },
  evaluation: { settings: { method: "evaluation", adapter: null, kind: "lora" }, steps: 0, batch: 4, learningRate: 0 },
} as const satisfies Record<TrainingMethod, Row>;

/** For small models. LoRA and textual inversion as the study measured them on the pocket model (docs/study.md); the others are starting points that no study has confirmed. */
const small = {
  lora: {
    settings: { ...published.lora.settings, rank: 8, alpha: 8, text_encoder: true },
    steps: 40,
    batch: 4,
    learningRate: 3e-4,
  },
  "textual-inversion": {
    ...published["textual-inversion"],
    settings: { ...published["textual-inversion"].settings, vectors: 2 },
    steps: 300,
    batch: 4,
    learningRate: 1e-2,
  },
  dreambooth: {
    settings: { method: "dreambooth", text_encoder: true, prior_pictures: 32, prior_steps: 12, extract_rank: 32 },
    steps: 100,
    batch: 4,
    learningRate: 1e-5,
  },
  hypernetwork: { ...published.hypernetwork, steps: 300, batch: 4, learningRate: 1e-3 },
  "hyper-lora": {
    ...published["hyper-lora"],
    settings: { ...published["hyper-lora"].settings, fine_tune_learning_rate: 3e-4 },
    steps: 1000,
    learningRate: 1e-3,
    warmup: 50,
  },
  "ip-adapter": { ...published["ip-adapter"], steps: 600, learningRate: 1e-3, captionDropout: 0.3, warmup: 10 },
  controlnet: {
    settings: { ...published.controlnet.settings, condition_dropout: 0.1 },
    steps: 600,
    batch: 4,
    learningRate: 3e-4,
    captionDropout: 0.3,
    warmup: 10,
  },
  evaluation: published.evaluation,
} as const satisfies Record<TrainingMethod, Row>;

/** Parameters in all parts below which a model counts as small: all published bases have more than 800 million. */
const smallBelow = 200e6;

/** What differs by family. SDXL's rates are halved and its offset noise is its own training's. */
const families = {
  sd1: { rate: 1, noiseOffset: 0 },
  sd2: { rate: 1, noiseOffset: 0 },
  sdxl: { rate: 0.5, noiseOffset: 0.0357 },
  "sdxl-refiner": { rate: 0.5, noiseOffset: 0.0357 },
} as const satisfies Record<ModelFamily, { rate: number; noiseOffset: number }>;

export const trainingDefaults: TrainingDefaultsOf = (method, family, { parameters, defaults, size_multiple }): TrainingDefaults => {
  const isSmall = parameters < smallBelow;
  const row: Row = (isSmall ? small : published)[method];
  const { rate, noiseOffset } = families[family];
  const side = Math.floor(Math.min(defaults.width, defaults.height) / size_multiple) * size_multiple;
  return {
    settings: row.settings,
    resolution: side,
    steps: row.steps,
    batch_size: row.batch,
    accumulation: 1,
    caption_dropout: row.captionDropout ?? 0,
    flip: row.flip ?? false,
    ema: row.ema ?? null,
    gradient_checkpointing: false,
    optimizer: {
      name: "adamw",
      learning_rate: row.learningRate * rate,
      text_learning_rate: row.textLearningRate === undefined ? null : row.textLearningRate * rate,
      betas: [0.9, 0.999],
      weight_decay: row.weightDecay ?? 0.01,
      epsilon: 1e-8,
      clip_norm: 1,
      moments: "float32",
      schedule: row.schedule ?? "constant",
      warmup_steps: row.warmup ?? 0,
    },
    loss: lossDefaults(noiseOffset),
    validate_every: Math.max(Math.round(row.steps / 10), 10),
    checkpoint_every: Math.max(Math.round(row.steps / 10), 25),
    sample_every: Math.max(Math.round(row.steps / 4), 1),
  };
};

function lossDefaults(noise_offset: number): LossSettings {
  return {
    min_snr_gamma: 5,
    noise_offset,
    zero_terminal_snr: null,
    timestep_sampling: "uniform",
    timesteps: [0, 999],
    prior_weight: 1,
  };
}
