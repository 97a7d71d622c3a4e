import type { ModelFamily } from "./model.ts";
import type { LossSettings, MethodSettings, OptimizerSettings, TrainingDefaults, TrainingDefaultsOf, TrainingMethod } from "./training.ts";

/** What a training does unless it is told otherwise. */

/** Settings, steps and learning rate of each method for a model of published size. */
interface Row {
  readonly settings: MethodSettings;
  readonly steps: number;
  readonly learningRate: number;
  readonly captionDropout: number;
}

const rows = {
  lora: {
    settings: { method: "lora", rank: 8, alpha: 8, targets: ["attention"], text_encoder: false, dora: false, start_from: null },
    ...{ steps: 1000, learningRate: 1e-4, captionDropout: 0 },
  },
  "textual-inversion": {
    settings: { method: "textual-inversion", vectors: 4, initial: "*" },
    ...{ steps: 2000, learningRate: 5e-3, captionDropout: 0 },
  },
  dreambooth: {
    settings: { method: "dreambooth", text_encoder: false, prior_pictures: 100, prior_steps: 25, extract_rank: null },
    ...{ steps: 800, learningRate: 2e-6, captionDropout: 0 },
  },
  hypernetwork: {
    settings: { method: "hypernetwork", layer_structure: [1, 2, 1], activation: "linear", layer_norm: false, activate_output: false },
    ...{ steps: 5000, learningRate: 5e-5, captionDropout: 0 },
  },
  "hyper-lora": {
    settings: { method: "hyper-lora", rank: 4, fine_tune_steps: 0 },
    ...{ steps: 3000, learningRate: 1e-4, captionDropout: 0 },
  },
  "ip-adapter": {
    settings: { method: "ip-adapter", variant: "base", tokens: 4, picture_dropout: 0.05, image_encoder: null },
    ...{ steps: 10_000, learningRate: 1e-4, captionDropout: 0.05 },
  },
  controlnet: {
    settings: { method: "controlnet", preprocess: null, condition_dropout: 0 },
    ...{ steps: 10_000, learningRate: 1e-5, captionDropout: 0.1 },
  },
} as const satisfies { [M in TrainingMethod]: Row & { readonly settings: { readonly method: M } } };

/** Batch that keeps the memory of a step near that of the others. */
const batchSizes = { sd1: 1, sd2: 1, sdxl: 1, "sdxl-refiner": 1 } as const satisfies Record<ModelFamily, number>;

/** Models of less text width than any published one take, by their width, larger steps and batches. */
const PUBLISHED_WIDTH = 768;

/** See `TrainingDefaults`: what is filled in for a method on a model of these widths. */
export const trainingDefaults: TrainingDefaultsOf = (
  method,
  family,
  { cross_attention_dim, defaults, size_multiple },
): TrainingDefaults => {
  const { settings, steps, learningRate, captionDropout } = rows[method] satisfies Row;
  const scale = Math.max(1, PUBLISHED_WIDTH / cross_attention_dim);
  const resolution = Math.floor(Math.min(defaults.width, defaults.height) / size_multiple) * size_multiple;
  return {
    settings: structuredClone(settings) as MethodSettings,
    resolution,
    steps,
    batch_size: Math.min(64, batchSizes[family] * Math.max(1, Math.round(scale / 2))),
    accumulation: 1,
    caption_dropout: captionDropout,
    flip: false,
    ema: null,
    gradient_checkpointing: false,
    optimizer: optimizerFor(learningRate * scale),
    loss: defaultLoss,
    validate_every: 100,
    checkpoint_every: 100,
    sample_every: null,
  };
};

function optimizerFor(learningRate: number): OptimizerSettings {
  return {
    ...{ name: "adamw", learning_rate: learningRate, text_learning_rate: null, betas: [0.9, 0.999] as [number, number] },
    ...{ weight_decay: 0.01, epsilon: 1e-8, clip_norm: 1, moments: "float32", schedule: "constant", warmup_steps: 0 },
  };
}

const defaultLoss: LossSettings = {
  ...{ min_snr_gamma: 5, noise_offset: 0, zero_terminal_snr: null, timestep_sampling: "uniform" },
  ...{ timesteps: [0, 999], prior_weight: 1 },
};
