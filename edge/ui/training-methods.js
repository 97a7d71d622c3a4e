/** @typedef {import("../../shared/training.ts").TrainingMethod} TrainingMethod */
/** What a list to choose from is made of beside fixed choices. @typedef {"adapters" | "loras" | "nets" | "encoders"} Source */
/**
 * A setting of a training. Of a number `zero` says what 0 stands for where the API has null for it; `initial` is the default where the table of
 * defaults has none.
 * @typedef {{ name: string, label: string, hint?: string, initial?: string } & (
 *   { control: "number", step?: number, zero?: string } |
 *   { control: "numbers" | "words" | "tick" } |
 *   { control: "choice", choices: Record<string, string> } |
 *   { control: "ticks", choices: Record<string, string> } |
 *   { control: "choice from", source: Source, none: string })} Row
 */

/** What each method is called, what it is for, and its own settings. @type {Record<TrainingMethod, { title: string, use: string, rows: readonly Row[] }>} */
export const methods = {
  lora: {
    title: "LoRA",
    use: "Nearly everything: an object, a face or a style, from some ten pictures.",
    rows: [
      { name: "settings.rank", label: "Rank", control: "number", step: 1 },
      { name: "settings.alpha", label: "Alpha", control: "number" },
      {
        name: "settings.targets",
        label: "Layers",
        control: "ticks",
        choices: { attention: "attention", "feed-forward": "feed-forward", convolution: "convolution" },
      },
      { name: "settings.text_encoder", label: "Train the text encoder too", control: "tick" },
      { name: "settings.dora", label: "DoRA: magnitude apart from direction", control: "tick" },
      { name: "settings.start_from", label: "Go on from", control: "choice from", source: "loras", none: "nothing: begin anew" },
    ],
  },
  "textual-inversion": {
    title: "Textual inversion",
    use: "A new word for what the base could draw if it were told how. The base stays as it is.",
    rows: [
      { name: "settings.vectors", label: "Vectors", control: "number", step: 1 },
      { name: "settings.initial", label: "Begins as", control: "words" },
    ],
  },
  dreambooth: {
    title: "DreamBooth",
    use: "One subject, as faithful as possible: the whole model learns it.",
    rows: [
      { name: "settings.prior_pictures", label: "Prior pictures", control: "number", step: 1 },
      { name: "settings.prior_steps", label: "Their steps", control: "number", step: 1 },
      { name: "settings.extract_rank", label: "Extracted rank", control: "number", step: 1, zero: "the full difference" },
      { name: "settings.text_encoder", label: "Train the text encoder too", control: "tick" },
    ],
  },
  hypernetwork: {
    title: "Hypernetwork (A1111)",
    use: "Where the result has to load in A1111. Else a LoRA learns as much with less.",
    rows: [
      { name: "settings.layer_structure", label: "Layers", control: "numbers" },
      {
        name: "settings.activation",
        label: "Activation",
        control: "choice",
        choices: {
          linear: "linear",
          relu: "ReLU",
          leakyrelu: "leaky ReLU",
          elu: "ELU",
          swish: "swish",
          tanh: "tanh",
          sigmoid: "sigmoid",
        },
      },
      { name: "settings.layer_norm", label: "Layer norm", control: "tick" },
      { name: "settings.activate_output", label: "Activate the output", control: "tick" },
    ],
  },
  "hyper-lora": {
    title: "HyperNetwork that predicts LoRAs",
    use: "Many concepts of one kind. Further ones get their LoRA from a few pictures, at once.",
    rows: [
      { name: "settings.rank", label: "Rank", control: "number", step: 1 },
      { name: "settings.fine_tune_steps", label: "Fine-tuning steps", control: "number", step: 1 },
      { name: "settings.fine_tune_learning_rate", label: "Fine-tuning rate", control: "number" },
      { name: "settings.start_from", label: "Net of", control: "choice from", source: "nets", none: "nothing: a new net" },
    ],
  },
  "ip-adapter": {
    title: "IP-Adapter",
    use: "Pictures as prompts, from many pictures.",
    rows: [
      {
        name: "settings.image_encoder",
        label: "Image encoder",
        control: "choice from",
        source: "encoders",
        none: "choose one",
        hint: "A CLIP vision encoder that was added as an adapter.",
      },
      {
        name: "settings.variant",
        label: "Variant",
        control: "choice",
        choices: { base: "base: 4 tokens", plus: "plus: a resampler, 16 tokens" },
      },
      { name: "settings.tokens", label: "Tokens", control: "number", step: 1 },
      { name: "settings.picture_dropout", label: "Picture dropout", control: "number" },
    ],
  },
  controlnet: {
    title: "ControlNet",
    use: "Drawing after edges, depth or another map, from many pairs. Each picture needs its map as condition.",
    rows: [
      {
        name: "settings.preprocess",
        label: "Map",
        control: "words",
        hint: "How the maps were made, for the record.",
      },
      { name: "settings.condition_dropout", label: "Condition dropout", control: "number" },
    ],
  },
  evaluation: {
    title: "Scores of an adapter",
    use: "Nothing is learned: an adapter is scored on the dataset's pictures as it is served.",
    rows: [{ name: "settings.adapter", label: "Adapter", control: "choice from", source: "adapters", none: "choose one" }],
  },
};

/** What every training has and few requests set. @type {readonly Row[]} */
export const advancedRows = [
  { name: "seed", label: "Seed", control: "number", step: 1, initial: "random" },
  { name: "accumulation", label: "Accumulation", control: "number", step: 1 },
  {
    name: "optimizer.schedule",
    label: "Schedule",
    control: "choice",
    choices: { constant: "constant", linear: "linear", cosine: "cosine" },
  },
  { name: "optimizer.warmup_steps", label: "Warm-up steps", control: "number", step: 1 },
  { name: "optimizer.text_learning_rate", label: "Text encoder's rate", control: "number", initial: "the same" },
  { name: "optimizer.weight_decay", label: "Weight decay", control: "number" },
  { name: "optimizer.clip_norm", label: "Clip norm", control: "number", zero: "none" },
  {
    name: "optimizer.moments",
    label: "Moments",
    control: "choice",
    choices: { float32: "float32", "8-bit": "8-bit" },
  },
  { name: "ema", label: "Average's decay", control: "number", zero: "none", initial: "none" },
  { name: "caption_dropout", label: "Caption dropout", control: "number" },
  { name: "loss.min_snr_gamma", label: "Min-SNR gamma", control: "number", zero: "none" },
  { name: "loss.noise_offset", label: "Noise offset", control: "number" },
  {
    name: "loss.timestep_sampling",
    label: "Timesteps",
    control: "choice",
    choices: { uniform: "uniform", "logit-normal": "logit-normal" },
  },
  { name: "loss.prior_weight", label: "Prior weight", control: "number" },
  { name: "validate_every", label: "Validate every", control: "number", step: 1 },
  { name: "checkpoint_every", label: "Checkpoint every", control: "number", step: 1 },
  { name: "scoring.pictures", label: "Scored pictures", control: "number", step: 1, initial: "8" },
  { name: "scoring.prior_pictures", label: "Prior score's pictures", control: "number", step: 1, initial: "8" },
  { name: "flip", label: "Mirror half of the pictures", control: "tick" },
  { name: "gradient_checkpointing", label: "Compute twice, to save memory", control: "tick" },
];
