import { byId, make } from "./dom.js";
import { labelled } from "./fields.js";
import { putAt } from "./paths.js";

/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */
/** @typedef {import("./api.js").Model} Model */
/** @typedef {(model: Model, models: readonly Model[]) => boolean} Applies */
/**
 * A field that few requests need. `initial` is what the API takes where it is absent: requests don't repeat it.
 * @typedef {{ name: string, label: string, control: "number" | "numbers" | "words" | Record<string, string>, step?: number | "any", max?: (model: Model) => number, initial?: string, placeholder?: string, applies?: Applies }} Row
 */

/** @type {Applies} */
const isXl = ({ family }) => family.startsWith("sdxl");
/** @type {Applies} */
const hasTwoEncoders = ({ text_widths }) => text_widths.length > 1;
/** Models that may take over from this one. */
const refiners = (/** @type {Model} */ model, /** @type {readonly Model[]} */ models) =>
  model.family === "sdxl" ? models.filter(other => other.family.startsWith("sdxl") && other.name !== model.name) : [];
/** @type {Applies} */
const hasRefiner = (model, models) => refiners(model, models).length > 0;
const size = { control: /** @type {const} */ ("numbers"), placeholder: "height, width", applies: isXl };

/** In the order in which they are shown. @type {Row[]} */
const rows = [
  { name: "prompt_2", label: "Second prompt", control: "words", placeholder: "the same", applies: hasTwoEncoders },
  { name: "negative_prompt_2", label: "Second negative prompt", control: "words", placeholder: "the same", applies: hasTwoEncoders },
  { name: "prompt_syntax", label: "Prompt syntax", control: { plain: "plain text", a1111: "A1111: (word:1.2)" }, initial: "plain" },
  { name: "clip_skip", label: "Clip skip", control: "number", step: 1, max: model => model.max_clip_skip },
  {
    name: "noise_source",
    label: "Noise",
    control: { philox: "philox: as on a GPU", mt19937: "mt19937: as on a CPU" },
    initial: "philox",
  },
  { name: "tiled_vae", label: "Decode in tiles", control: { "": "no", true: "yes" } },
  { name: "guidance_interval.0", label: "Guidance from", control: "number", step: 0.05, initial: "0", placeholder: "0" },
  { name: "guidance_interval.1", label: "Guidance until", control: "number", step: 0.05, initial: "1", placeholder: "1" },
  { name: "variation.seed", label: "Variation seed", control: "number", step: 1, placeholder: "none" },
  { name: "variation.strength", label: "Variation strength", control: "number", step: 0.05, placeholder: "none" },
  { name: "upscale.mode", label: "Second pass", control: { "": "none", latent: "latent upscale", pixel: "pixel upscale" } },
  { name: "upscale.scale", label: "Upscale factor", control: "number", step: 0.25, placeholder: "2" },
  { name: "upscale.strength", label: "Upscale strength", control: "number", step: 0.05, placeholder: "0.7" },
  { name: "upscale.steps", label: "Upscale steps", control: "number", step: 1, placeholder: "the same" },
  { name: "refiner.model", label: "Refiner", control: { "": "none" }, applies: hasRefiner },
  { name: "refiner.switch_at", label: "Refiner from", control: "number", step: 0.05, placeholder: "0.8", applies: hasRefiner },
  { name: "micro_conditioning.original_size", label: "Original size", ...size },
  { name: "micro_conditioning.target_size", label: "Target size", ...size },
  { name: "micro_conditioning.crops_coords_top_left", label: "Crop", ...size, placeholder: "top, left" },
  { name: "micro_conditioning.negative_original_size", label: "Negative original size", ...size },
  { name: "micro_conditioning.negative_target_size", label: "Negative target size", ...size },
  { name: "micro_conditioning.negative_crops_coords_top_left", label: "Negative crop", ...size, placeholder: "top, left" },
  { name: "micro_conditioning.aesthetic_score", label: "Aesthetic score", control: "number", step: 0.5, placeholder: "6", applies: isXl },
  {
    name: "micro_conditioning.negative_aesthetic_score",
    label: "Negative score",
    control: "number",
    step: 0.5,
    placeholder: "2.5",
    applies: isXl,
  },
];

/**
 * Shows the fields that a model has; those that stay keep what stands in them.
 * @param {Model} model
 * @param {readonly Model[]} models
 */
export function showAdvanced(model, models) {
  const list = byId("advanced-fields", HTMLElement);
  const before = new Map(
    [...list.querySelectorAll("input, select")].map(control => [control.id, /** @type {HTMLInputElement} */ (control).value]),
  );
  const shown = rows.filter(({ applies, max }) => (applies?.(model, models) ?? true) && max?.(model) !== 0);
  list.replaceChildren(
    ...shown.map(row => {
      const control = controlOf(row, model, models);
      control.value = before.get(row.name) ?? row.initial ?? "";
      return labelled(row.name, row.label, control);
    }),
  );
}

/**
 * @param {Row} row
 * @param {Model} model
 * @param {readonly Model[]} models
 */
function controlOf({ name, control, step, max, placeholder = "" }, model, models) {
  if (typeof control === "object") {
    const choices = name === "refiner.model" ? refiners(model, models).map(other => new Option(other.name)) : [];
    return make("select", {}, ...Object.entries(control).map(([value, title]) => new Option(title, value)), ...choices);
  }
  if (control !== "number") return make("input", { type: "text", placeholder });
  const input = make("input", { type: "number", inputMode: "decimal", min: "0", step: String(step ?? "any"), placeholder });
  if (max) input.max = String(max(model));
  return input;
}

/**
 * What is asked for beyond the usual.
 * @param {FormData} data
 * @returns {Partial<GenerationRequest>}
 */
export function readAdvanced(data) {
  /** @type {Record<string, unknown>} */
  const request = {};
  for (const { name, control, initial } of rows) {
    const text = String(data.get(name) ?? "").trim();
    if (text === "" || text === initial || name.startsWith("guidance_interval")) continue;
    putAt(request, name, parsed(control, text));
  }
  const [from, until] = ["0", "1"].map(end => String(data.get(`guidance_interval.${end}`) || end));
  if (from !== "0" || until !== "1") request.guidance_interval = [Number(from), Number(until)];
  return request;
}

/**
 * @param {Row["control"]} control
 * @param {string} text
 */
function parsed(control, text) {
  if (control === "number") return Number(text);
  if (control === "numbers") return text.split(",").map(Number);
  return text === "true" ? true : text;
}
