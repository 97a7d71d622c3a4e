import { make } from "./dom.js";
import { asField, labelled, tick } from "./fields.js";
import { putAt, valueAt } from "./paths.js";

/** @typedef {import("../../shared/training.ts").TrainingDefaults} TrainingDefaults */
/** @typedef {import("./training-methods.js").Row} Row */
/** @typedef {import("./training-methods.js").Source} Source */

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
