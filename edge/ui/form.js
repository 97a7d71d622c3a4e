import { byId, make } from "./dom.js";
import { clearFieldErrors, sentence, showFieldErrors } from "./fields.js";
import { readSamplerOptions, showSamplerOptions } from "./sampler-fields.js";
import { samplers } from "./samplers.js";

/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */
/** @typedef {import("./api.js").Model} Model */
/** @typedef {import("./api.js").Problem} Problem */
/** @typedef {import("./samplers.js").SamplerName} SamplerName */

const form = byId("generate-form", HTMLFormElement);
const numbers = ["width", "height", "steps", "guidance_scale", "guidance_rescale", "seed", "num_images"];

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
  hint.textContent = model.description ?? "";
  hint.hidden = !model.description;
  setFields(model.defaults);
}

/**
 * @param {Partial<GenerationRequest>} values by field; others stay as they are
 */
function setFields(values) {
  for (const [name, value] of Object.entries(values)) {
    const control = form.elements.namedItem(name);
    if (control instanceof HTMLInputElement || control instanceof HTMLTextAreaElement || control instanceof HTMLSelectElement)
      control.value = String(value ?? "");
  }
  if (values.sampler) showSamplerOptions(/** @type {import("./samplers.js").SamplerName} */ (values.sampler), values.sampler_options);
}

/**
 * Puts the settings of an earlier request into the form.
 * @param {GenerationRequest} request
 */
export function fillForm(request) {
  clearErrors();
  const known = models.some(({ name }) => name === request.model);
  setFields(known ? request : { ...request, model: chosenModel()?.name });
  byId("prompt", HTMLTextAreaElement).focus();
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
    sampler: chosenSampler(),
    ...(Object.keys(options).length > 0 && { sampler_options: options }),
    format: /** @type {GenerationRequest["format"]} */ (text("format")),
    cache: /** @type {GenerationRequest["cache"]} */ (text("cache")),
  };
}

function clearErrors() {
  clearFieldErrors(form);
  byId("form-error", HTMLElement).hidden = true;
}

/**
 * Shows why a request was refused: beside the fields where they are named, else under the button.
 * @param {Problem} problem
 */
export function showProblem(problem) {
  const unplaced = showFieldErrors(problem.errors ?? []);
  if (problem.errors?.length && unplaced.length === 0) return;
  const box = byId("form-error", HTMLElement);
  const lines = unplaced.map(({ field, expected, got }) => make("span", {}, `${field}: ${sentence(expected, got)}`));
  box.replaceChildren(problem.detail ?? problem.title, ...lines);
  if (problem.status >= 500 && problem.instance) box.append(make("span", { className: "muted" }, `Request ${problem.instance}`));
  box.hidden = false;
}
