import { readAdapters, showAdapters } from "./adapters.js";
import { readAdvanced, showAdvanced } from "./advanced.js";
import { byId } from "./dom.js";
import { clearFieldErrors, showFieldErrors } from "./fields.js";
import { modelLine } from "./models.js";
import { putAt, valueAt } from "./paths.js";
import { readSamplerOptions, showSamplerOptions } from "./sampler-fields.js";
import { samplers } from "./samplers.js";
import { readSource, setSourceModel } from "./source.js";

/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */
/** @typedef {import("./api.js").Model} Model */
/** @typedef {import("./samplers.js").SamplerName} SamplerName */

const form = byId("generate-form", HTMLFormElement);
const numbers = ["width", "height", "steps", "guidance_scale", "guidance_rescale", "seed", "num_images"];
/** Fields that stand beside the picture to start from. They are hidden, and say nothing, where there is none. */
const sourceNumbers = ["image_guidance_scale", "mask_blur", "padding_mask_crop"];
const borders = ["outpaint.left", "outpaint.right", "outpaint.top", "outpaint.bottom"];

/** @type {Model[]} */
let models = [];

/** Fills in the samplers and keeps their options in step. */
export function setUpForm() {
  const sampler = byId("sampler", HTMLSelectElement);
  sampler.replaceChildren(...Object.entries(samplers).map(([name, { title }]) => new Option(title, name)));
  sampler.addEventListener("change", () => showSamplerOptions(chosenSampler()));
  showSamplerOptions(chosenSampler());
  byId("model", HTMLSelectElement).addEventListener("change", applyModel);
}

function chosenSampler() {
  return /** @type {SamplerName} */ (byId("sampler", HTMLSelectElement).value);
}

/**
 * Offers the models; the chosen one's defaults go into the fields.
 * @param {Model[]} list
 */
export function showModels(list) {
  models = list;
  const select = byId("model", HTMLSelectElement);
  select.replaceChildren(...list.map(({ name }) => new Option(name)));
  select.disabled = list.length === 0;
  if (list.length > 0) applyModel();
}

/** The model that is chosen now, if any is known. */
export function chosenModel() {
  return models.find(({ name }) => name === byId("model", HTMLSelectElement).value);
}

/** @param {string} name */
export function chooseModel(name) {
  byId("model", HTMLSelectElement).value = name;
  applyModel();
}

function applyModel() {
  const model = chosenModel();
  if (!model) return;
  for (const side of ["width", "height"]) {
    const input = byId(side, HTMLInputElement);
    input.min = String(model.min_size);
    input.max = String(model.max_size);
    input.step = String(model.size_multiple);
  }
  const hint = byId("model-hint", HTMLElement);
  hint.textContent = modelLine(model);
  hint.title = model.description ?? "";
  hint.hidden = false;
  showAdvanced(model, models);
  setFields(model.defaults);
  setSourceModel(model);
  showAdapters();
}

/**
 * @param {Partial<GenerationRequest>} values by field; others stay as they are
 */
function setFields(values) {
  for (const control of form.elements) {
    const name = control.getAttribute("name") ?? "";
    if (!(name.split(".")[0] in values) || !isEntry(control)) continue;
    const value = valueAt(values, name);
    control.value = value === false ? "" : String(value ?? "");
  }
  if (values.sampler) showSamplerOptions(/** @type {import("./samplers.js").SamplerName} */ (values.sampler), values.sampler_options);
}

/**
 * @param {Element} control
 * @returns {control is HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement}
 */
function isEntry(control) {
  if (control instanceof HTMLInputElement) return ["text", "number", "password"].includes(control.type);
  return control instanceof HTMLTextAreaElement || control instanceof HTMLSelectElement;
}

/**
 * Puts the settings of an earlier request into the form.
 * @param {GenerationRequest} request
 */
export function fillForm(request) {
  clearErrors();
  const known = models.some(({ name }) => name === request.model);
  if (known && request.model) chooseModel(request.model);
  const { adapters: _adapters, ...rest } = request;
  setFields(known ? rest : { ...rest, model: chosenModel()?.name });
  for (const id of ["more", "advanced"]) openWhereFilled(byId(id, HTMLDetailsElement));
  byId("prompt", HTMLTextAreaElement).focus();
}

/**
 * Opens a part of the form in which something unusual stands.
 * @param {HTMLDetailsElement} part
 */
function openWhereFilled(part) {
  if (part.id === "advanced" && Object.keys(readAdvanced(new FormData(form))).some(name => name !== "clip_skip")) part.open = true;
}

/**
 * What the form asks for. Empty fields are left to the server, which also judges the values.
 * @returns {GenerationRequest | null} null where an entry is not a number; the error then stands beside it
 */
export function readForm() {
  clearErrors();
  const unreadable = [...form.elements].filter(control => control instanceof HTMLInputElement && control.validity.badInput);
  if (unreadable.length > 0) {
    showFieldErrors(unreadable.map(control => ({ field: control.getAttribute("name") ?? "", expected: "expected a number" })));
    return null;
  }
  const data = new FormData(form);
  const text = (/** @type {string} */ name) => String(data.get(name) ?? "");
  const entered = numbers.filter(name => text(name) !== "").map(name => [name, Number(text(name))]);
  const options = readSamplerOptions(data);
  return {
    prompt: text("prompt"),
    ...(text("negative_prompt") !== "" && { negative_prompt: text("negative_prompt") }),
    ...(text("model") !== "" && { model: text("model") }),
    ...Object.fromEntries(entered),
    ...readSource(),
    ...readSourceFields(data),
    ...readAdapters(),
    ...readAdvanced(data),
    sampler: chosenSampler(),
    ...(Object.keys(options).length > 0 && { sampler_options: options }),
    format: /** @type {GenerationRequest["format"]} */ (text("format")),
    cache: /** @type {GenerationRequest["cache"]} */ (text("cache")),
  };
}

/**
 * @param {FormData} data
 * @returns {Partial<GenerationRequest>}
 */
function readSourceFields(data) {
  /** @type {Record<string, unknown>} */
  const request = {};
  for (const name of [...sourceNumbers, ...borders]) {
    const text = String(data.get(name) ?? "");
    if (text !== "" && text !== "0") putAt(request, name, Number(text));
  }
  const fill = data.get("mask_fill");
  if (fill !== null && fill !== "original") request.mask_fill = fill;
  return request;
}

function clearErrors() {
  clearFieldErrors(form);
  byId("form-error", HTMLElement).hidden = true;
}
