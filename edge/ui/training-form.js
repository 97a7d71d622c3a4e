import { imageEncoderLayout } from "./adapter-kinds.js";
import { chosenDataset, showConcepts } from "./dataset.js";
import { byId } from "./dom.js";
import { clearFieldErrors, showFieldErrors } from "./fields.js";
import { putAt, valueAt } from "./paths.js";
import { trainingDefaults } from "./training-defaults.js";
import { fieldsOf, fillFields, readFields } from "./training-fields.js";
import { advancedRows, methods } from "./training-methods.js";

/** @typedef {import("./api.js").Adapter} Adapter */
/** @typedef {import("./api.js").Model} Model */
/** @typedef {import("./training-api.js").Training} Training */
/** @typedef {import("./training-api.js").TrainingRequest} TrainingRequest */
/** @typedef {import("../../shared/training.ts").TrainingMethod} TrainingMethod */

const form = byId("train-form", HTMLFormElement);
const methodSelect = byId("settings.method", HTMLSelectElement);
const modelSelect = byId("model", HTMLSelectElement);
/** Fields of the page itself whose defaults stand in them. */
const numbers = ["steps", "optimizer.learning_rate", "batch_size", "resolution", "sample_every"];
/** @type {readonly Model[]} */
let models = [];
/** @type {Record<import("./training-methods.js").Source, readonly { id: string, title: string }[]>} */
let sources = { adapters: [], loras: [], nets: [], encoders: [] };

export function setUpTrainingForm() {
  methodSelect.replaceChildren(...Object.entries(methods).map(([name, { title }]) => new Option(title, name)));
  for (const select of [methodSelect, modelSelect]) select.addEventListener("change", showDefaults);
  for (const id of ["name", "tokens"]) byId(id, HTMLInputElement).addEventListener("input", () => showConcepts(tokens()));
}

/**
 * Offers the models, and what a training may go on from.
 * @param {readonly Model[]} list
 * @param {readonly Adapter[]} adapters
 * @param {readonly Training[]} trainings
 */
export function showChoices(list, adapters, trainings) {
  models = list;
  const chosen = modelSelect.value;
  modelSelect.replaceChildren(...list.map(({ name }) => new Option(name)));
  if (list.some(({ name }) => name === chosen)) modelSelect.value = chosen;
  modelSelect.disabled = list.length === 0;
  const ready = adapters.filter(({ status }) => status === "ready");
  const titled = (/** @type {Adapter} */ { id, name, version }) => ({ id, title: `${name}, version ${version}` });
  sources = {
    adapters: ready.filter(({ manifest }) => manifest?.layout !== imageEncoderLayout).map(titled),
    loras: ready.filter(({ kind }) => kind === "lora").map(titled),
    encoders: ready.filter(hasEncoder).map(titled),
    nets: trainings
      .filter(({ status, request }) => status === "succeeded" && request.settings.method === "hyper-lora" && !request.dry_run)
      .map(({ id, name }) => ({ id, title: name })),
  };
  showDefaults();
}

/** @param {Adapter} adapter */
function hasEncoder({ manifest, files }) {
  return manifest?.layout === imageEncoderLayout || files.some(({ path }) => path === "image_encoder/config.json");
}

function method() {
  return /** @type {TrainingMethod} */ (methodSelect.value);
}

function chosenModel() {
  return models.find(({ name }) => name === modelSelect.value);
}

/** The method and model that fields are shown for. */
let shownFor = "";

/** Shows what the API takes where nothing is entered, for the method and model that are chosen. */
function showDefaults() {
  const model = chosenModel();
  if (!model) return;
  const defaults = trainingDefaults(method(), model.family, model);
  const { use, rows } = methods[method()];
  byId("method-hint", HTMLElement).textContent = use;
  for (const name of numbers) byId(name, HTMLInputElement).placeholder = String(valueAt(defaults, name));
  byId("sampling.steps", HTMLInputElement).placeholder = String(model.defaults.steps);
  byId("resolution", HTMLInputElement).step = String(model.size_multiple);
  const isShownFor = `${method()} ${model.name}`;
  const kept = entries(shownFor === isShownFor);
  shownFor = isShownFor;
  byId("method-fields", HTMLElement).replaceChildren(...fieldsOf(rows, defaults, sources));
  byId("advanced-fields", HTMLElement).replaceChildren(...fieldsOf(advancedRows, defaults, sources));
  restore(kept);
}

/** @typedef {{ name: string, value: string, checked: boolean | null }} Entry `checked` of boxes to tick */

/** The fields that are made for a method. */
function madeFields() {
  const fields = form.querySelectorAll(":is(#method-fields, #advanced-fields) :is(input, select)");
  return [...fields].filter(field => field instanceof HTMLInputElement || field instanceof HTMLSelectElement);
}

/**
 * What stands in them. Under another method or model what was entered of the rest stays, while boxes and choices begin as its defaults.
 * @param {boolean} isSame
 * @returns {Entry[]}
 */
function entries(isSame) {
  const all = madeFields().map(field => ({ name: field.name, value: field.value, checked: isBox(field) ? field.checked : null }));
  return isSame ? all : all.filter(({ name, value }) => value !== "" && isNumber(name));
}

/** @param {string} name */
function isNumber(name) {
  return advancedRows.some(row => row.name === name && row.control === "number");
}

/** @param {readonly Entry[]} kept */
function restore(kept) {
  for (const field of madeFields()) {
    const isTick = isBox(field);
    const entry = kept.find(({ name, value, checked }) => name === field.name && (checked === null || value === field.value));
    if (!entry) continue;
    if (isTick) field.checked = entry.checked ?? field.checked;
    else if (field instanceof HTMLInputElement || [...field.options].some(({ value }) => value === entry.value)) field.value = entry.value;
  }
}

/**
 * @param {HTMLInputElement | HTMLSelectElement} field
 * @returns {field is HTMLInputElement}
 */
function isBox(field) {
  return field instanceof HTMLInputElement && field.type === "checkbox";
}

/** The words that the concepts are called by: as entered, else the training's name. */
function tokens() {
  const [name = "", entered = ""] = ["name", "tokens"].map(id => byId(id, HTMLInputElement).value);
  const list = split(entered);
  return list.length > 0 ? list : split(name);
}

/** @param {string} text */
function split(text) {
  return text
    .split(",")
    .map(part => part.trim())
    .filter(part => part !== "");
}

/**
 * What the form asks for. Empty fields are left to the server, which also judges the values.
 * @returns {TrainingRequest | null} null where an entry is not a number; the error then stands beside it
 */
export function readTraining() {
  clearFieldErrors(form);
  byId("form-error", HTMLElement).hidden = true;
  const unreadable = [...form.elements].filter(control => control instanceof HTMLInputElement && control.validity.badInput);
  const dataset = chosenDataset();
  const model = chosenModel();
  const errors = [
    ...unreadable.map(control => ({ field: control.getAttribute("name") ?? "", expected: "expected a number" })),
    ...(dataset ? [] : [{ field: "dataset", expected: "expected pictures to learn from: drop some, or choose files" }]),
  ];
  if (errors.length > 0 || !dataset || !model) {
    showFieldErrors(errors);
    return null;
  }
  const data = new FormData(form);
  const text = (/** @type {string} */ name) => String(data.get(name) ?? "").trim();
  /** @type {Record<string, unknown>} */
  const request = { name: text("name"), model: model.name, dataset: dataset.id, settings: { method: method() } };
  for (const name of [...numbers, "sampling.steps"]) if (text(name) !== "") putAt(request, name, Number(text(name)));
  const concepts = readConcepts(text("class_prompts"));
  if (concepts) request.concepts = concepts;
  const prompts = text("sample_prompts")
    .split("\n")
    .map(line => line.trim())
    .filter(Boolean);
  if (prompts.length > 0) request.sample_prompts = prompts;
  if (text("budget") !== "") request.budget = Math.round(Number(text("budget")) * 60);
  const defaults = trainingDefaults(method(), model.family, model);
  readFields([...methods[method()].rows, ...advancedRows], data, defaults, request);
  return /** @type {TrainingRequest} */ (request);
}

/**
 * @param {string} entered class prompts in the order of the tokens
 * @returns {TrainingRequest["concepts"]}
 */
function readConcepts(entered) {
  const classes = split(entered);
  if (split(byId("tokens", HTMLInputElement).value).length === 0 && classes.length === 0) return undefined;
  return tokens().map((token, i) => ({ token, ...(classes[i] && { class_prompt: classes[i] }) }));
}

/**
 * Puts the settings of an earlier training into the form: what differs from the defaults of its method and model.
 * @param {Training} training
 */
export function fillTraining({ name, model: named, request }) {
  clearFieldErrors(form);
  form.reset();
  for (const part of ["method-fields", "advanced-fields"]) byId(part, HTMLElement).replaceChildren();
  methodSelect.value = request.settings.method;
  if (models.some(model => model.name === named)) modelSelect.value = named;
  showDefaults();
  const model = chosenModel();
  if (!model) return;
  const defaults = trainingDefaults(method(), model.family, model);
  const { concepts, sample_prompts, budget_ms } = request;
  /** @type {Record<string, string>} */
  const texts = {
    name,
    tokens: concepts.map(({ token }) => token).join(", "),
    class_prompts: concepts.map(({ class_prompt }) => class_prompt ?? "").join(", "),
    sample_prompts: sample_prompts.join("\n"),
    budget: budget_ms === null ? "" : String(budget_ms / 60_000),
  };
  for (const [id, value] of Object.entries(texts)) setValue(id, value);
  for (const id of numbers) if (valueAt(request, id) !== valueAt(defaults, id)) setValue(id, String(valueAt(request, id) ?? ""));
  fillFields([...methods[method()].rows, ...advancedRows], form, defaults, request);
  showConcepts(tokens());
}

/**
 * @param {string} id of an input or a text area
 * @param {string} value
 */
function setValue(id, value) {
  const control = document.getElementById(id);
  if (control instanceof HTMLInputElement || control instanceof HTMLTextAreaElement) control.value = value;
}
