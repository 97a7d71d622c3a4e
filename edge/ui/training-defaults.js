/** @typedef {import("../../shared/training.ts").TrainingMethod} TrainingMethod */
/** @typedef {import("../../shared/training.ts").MethodSettings} MethodSettings */
/** @typedef {{ settings: MethodSettings, steps: number, batch: number, learningRate: number, textLearningRate?: number, weightDecay?: number, captionDropout?: number, schedule?: "cosine", warmup?: number, flip?: boolean }} Row */

// The page has no build step, so this repeats shared/training-defaults.ts; test/e2e/playground-tables.test.ts compares the two.

const targets = /** @type {"attention"[]} */ (["attention"]);
const layers = { layer_structure: [1, 2, 1], activation: /** @type {const} */ ("linear"), layer_norm: false, activate_output: false };

/** For published bases. @satisfies {Record<TrainingMethod, Row>} */
const published = {
  lora: {
    settings: { method: "lora", rank: 16, alpha: 16, targets, text_encoder: false, dora: false, start_from: null },
    ...{ steps: 1500, batch: 1, learningRate: 1e-4, textLearningRate: 5e-5, schedule: "cosine", warmup: 50 },
  },
  "textual-inversion": {
    settings: { method: "textual-inversion", vectors: 4, initial: "object" },
    ...{ steps: 3000, batch: 1, learningRate: 5e-3, weightDecay: 0 },
  },
  dreambooth: {
    settings: { method: "dreambooth", text_encoder: false, prior_pictures: 100, prior_steps: 30, extract_rank: 64 },
    ...{ steps: 800, batch: 1, learningRate: 2e-6 },
  },
  hypernetwork: {
    settings: { method: "hypernetwork", ...layers },
    ...{ steps: 5000, batch: 1, learningRate: 1e-5, weightDecay: 0 },
  },
  "hyper-lora": {
    settings: { method: "hyper-lora", rank: 4, fine_tune_steps: 0, fine_tune_learning_rate: 1e-4, start_from: null },
    ...{ steps: 5000, batch: 4, learningRate: 5e-4, warmup: 100, schedule: "cosine" },
  },
  "ip-adapter": {
    settings: { method: "ip-adapter", variant: "base", tokens: 4, picture_dropout: 0.05, image_encoder: null },
    ...{ steps: 20_000, batch: 4, learningRate: 1e-4, captionDropout: 0.05, warmup: 200, flip: true },
  },
  controlnet: {
    settings: { method: "controlnet", preprocess: null, condition_dropout: 0 },
    ...{ steps: 20_000, batch: 4, learningRate: 1e-5, captionDropout: 0.5, warmup: 200 },
  },
  evaluation: { settings: { method: "evaluation", adapter: null, kind: "lora" }, steps: 0, batch: 4, learningRate: 0 },
};

/** For small models. @type {Record<TrainingMethod, Row>} */
const small = {
  lora: {
    settings: { ...published.lora.settings, method: "lora", rank: 8, alpha: 8, text_encoder: true },
    ...{ steps: 40, batch: 4, learningRate: 3e-4 },
  },
  "textual-inversion": {
    settings: { method: "textual-inversion", vectors: 2, initial: "object" },
    ...{ steps: 300, batch: 4, learningRate: 1e-2, weightDecay: 0 },
  },
  dreambooth: {
    settings: { method: "dreambooth", text_encoder: true, prior_pictures: 32, prior_steps: 12, extract_rank: 32 },
    ...{ steps: 100, batch: 4, learningRate: 1e-5 },
  },
  hypernetwork: { settings: { method: "hypernetwork", ...layers }, steps: 300, batch: 4, learningRate: 1e-3, weightDecay: 0 },
  "hyper-lora": {
    settings: { method: "hyper-lora", rank: 4, fine_tune_steps: 0, fine_tune_learning_rate: 3e-4, start_from: null },
    ...{ steps: 1000, batch: 4, learningRate: 1e-3, warmup: 50, schedule: "cosine" },
  },
  "ip-adapter": {
    settings: { method: "ip-adapter", variant: "base", tokens: 4, picture_dropout: 0.05, image_encoder: null },
    ...{ steps: 600, batch: 4, learningRate: 1e-3, captionDropout: 0.3, warmup: 10, flip: true },
  },
  controlnet: {
    settings: { method: "controlnet", preprocess: null, condition_dropout: 0.1 },
    ...{ steps: 600, batch: 4, learningRate: 3e-4, captionDropout: 0.3, warmup: 10 },
  },
  evaluation: { settings: { method: "evaluation", adapter: null, kind: "lora" }, steps: 0, batch: 4, learningRate: 0 },
};

/** Parameters below which a model counts as small. */
const smallBelow = 200e6;

/**
 * What the API takes where a request says nothing.
 * @type {import("../../shared/training.ts").TrainingDefaultsOf}
 */
export const trainingDefaults = (method, family, { parameters, defaults, size_multiple }) => {
  /** @type {Row} */
  const row = (parameters < smallBelow ? small : published)[method];
  const isXl = family.startsWith("sdxl");
  const rate = isXl ? 0.5 : 1;
  const { textLearningRate = null } = row;
  return {
    settings: row.settings,
    resolution: Math.floor(Math.min(defaults.width, defaults.height) / size_multiple) * size_multiple,
    ...{ steps: row.steps, batch_size: row.batch, accumulation: 1 },
    ...{ caption_dropout: row.captionDropout ?? 0, flip: row.flip ?? false, ema: null, gradient_checkpointing: false },
    optimizer: {
      ...{ name: "adamw", betas: [0.9, 0.999], epsilon: 1e-8, clip_norm: 1, moments: "float32" },
      learning_rate: row.learningRate * rate,
      text_learning_rate: textLearningRate === null ? null : textLearningRate * rate,
      weight_decay: row.weightDecay ?? 0.01,
      schedule: row.schedule ?? "constant",
      warmup_steps: row.warmup ?? 0,
    },
    loss: {
      ...{ min_snr_gamma: 5, noise_offset: isXl ? 0.0357 : 0, zero_terminal_snr: null },
      ...{ timestep_sampling: "uniform", timesteps: [0, 999], prior_weight: 1 },
    },
    validate_every: Math.max(Math.round(row.steps / 10), 10),
    checkpoint_every: Math.max(Math.round(row.steps / 10), 25),
    sample_every: Math.max(Math.round(row.steps / 4), 1),
  };
};
