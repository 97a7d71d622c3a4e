import { make } from "./dom.js";
import { asField, labelled, tick } from "./fields.js";
import { putAt, valueAt } from "./paths.js";

/** @typedef {import("../../shared/training.ts").TrainingMethod} TrainingMethod */
/** @typedef {import("../../shared/training.ts").TrainingDefaults} TrainingDefaults */
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

/**
 * The fields of some settings, with the defaults shown where nothing is entered.
 * @param {readonly Row[]} rows
 * @param {TrainingDefaults} defaults
 * @param {Record<Source, readonly { id: string, title: string }[]>} sources
 */
export function fieldsOf(rows, defaults, sources) {
  return rows.map(row => {
    const field = fieldOf(row, valueAt(defaults, row.name), sources);
    if (row.hint) field.append(make("p", { className: "hint" }, row.hint));
    if (row.control === "tick" || row.control === "ticks" || row.control === "choice from") field.classList.add("wide");
    return field;
  });
}

/**
 * @param {Row} row
 * @param {unknown} value the default
 * @param {Record<Source, readonly { id: string, title: string }[]>} sources
 */
function fieldOf(row, value, sources) {
  const { name, label } = row;
  switch (row.control) {
    case "tick":
      return tick(name, label, value === true, () => {});
    case "ticks":
      return asField(
        name,
        make("span", { className: "label" }, label),
        make(
          "div",
          { className: "segments", role: "group", ariaLabel: label },
          ...Object.entries(row.choices).map(([choice, title]) => {
            const box = make("input", { type: "checkbox", name, value: choice, checked: Array.isArray(value) && value.includes(choice) });
            return make("label", { className: "check" }, box, ` ${title}`);
          }),
        ),
      );
    case "choice": {
      const select = make("select", {}, ...Object.entries(row.choices).map(([choice, title]) => new Option(title, choice)));
      select.value = String(value);
      return labelled(name, label, select);
    }
    case "choice from": {
      const options = sources[row.source].map(({ id, title }) => new Option(title, id));
      return labelled(name, label, make("select", {}, new Option(row.none, ""), ...options));
    }
    default: {
      const placeholder = row.initial ?? placeholderOf(row, value);
      const input = make("input", { placeholder });
      if (row.control === "number")
        Object.assign(input, { type: "number", inputMode: "decimal", min: "0", step: String(row.step ?? "any") });
      if (row.control === "number" && row.zero) input.title = `0: ${row.zero}`;
      return labelled(name, label, input);
    }
  }
}

/**
 * @param {Row} row
 * @param {unknown} value
 */
function placeholderOf(row, value) {
  if (value === null || value === undefined) return row.control === "number" && row.zero ? row.zero : "none";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

/**
 * Puts what differs from the defaults into a request.
 * @param {readonly Row[]} rows
 * @param {FormData} data
 * @param {TrainingDefaults} defaults
 * @param {Record<string, unknown>} request
 */
export function readFields(rows, data, defaults, request) {
  for (const row of rows) {
    const value = entered(row, data);
    if (value === undefined || JSON.stringify(value) === JSON.stringify(valueAt(defaults, row.name))) continue;
    putAt(request, row.name, value);
  }
}

/**
 * @param {Row} row
 * @param {FormData} data
 * @returns {unknown} undefined where nothing was entered
 */
function entered(row, data) {
  if (row.control === "ticks") return data.getAll(row.name);
  if (row.control === "tick") return data.has(row.name);
  const text = String(data.get(row.name) ?? "").trim();
  if (text === "") return undefined;
  if (row.control === "numbers") return text.split(",").map(Number);
  if (row.control !== "number") return text;
  return row.zero && Number(text) === 0 ? null : Number(text);
}

/**
 * Puts what a request has into the fields, where it differs from the defaults.
 * @param {readonly Row[]} rows
 * @param {HTMLFormElement} form
 * @param {TrainingDefaults} defaults
 * @param {object} request
 */
export function fillFields(rows, form, defaults, request) {
  for (const { name, control } of rows) {
    const value = valueAt(request, name);
    if (value === undefined || JSON.stringify(value) === JSON.stringify(valueAt(defaults, name))) continue;
    for (const input of form.querySelectorAll(`[name="${CSS.escape(name)}"]`)) {
      if (input instanceof HTMLSelectElement) input.value = String(value);
      if (!(input instanceof HTMLInputElement)) continue;
      if (control === "ticks") input.checked = Array.isArray(value) && value.includes(input.value);
      else if (control === "tick") input.checked = value === true;
      else input.value = value === null ? "0" : String(value);
    }
  }
}
