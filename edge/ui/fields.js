import { make } from "./dom.js";

/** @typedef {import("../../shared/errors.ts").FieldError} FieldError */

/**
 * Shows errors beside their fields, opens what hides them, and focuses the first. A field is named by its `data-field`.
 * @param {readonly FieldError[]} errors
 * @returns {FieldError[]} those that have no field on the page
 */
export function showFieldErrors(errors) {
  const unplaced = errors.filter(error => !showFieldError(error));
  const first = document.querySelector("[aria-invalid=true]");
  first?.closest("details")?.setAttribute("open", "");
  if (first instanceof HTMLElement) first.focus();
  return unplaced;
}

/** @param {FieldError} error */
function showFieldError({ field, expected, got }) {
  const place = placeOf(field);
  const control = place?.querySelector("[data-control]") ?? place?.querySelector("input, textarea, select");
  const text = place?.querySelector("[data-error]");
  if (!control || !(text instanceof HTMLElement)) return false;
  text.textContent = sentence(expected, got);
  text.id = `error-${field}`;
  text.hidden = false;
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", text.id);
  return true;
}

/**
 * The part of the page for a field, or for what the field is part of.
 * @param {string} field
 * @returns {Element | null}
 */
function placeOf(field) {
  const place = document.querySelector(`[data-field="${CSS.escape(field)}"]`);
  if (place && !place.closest("[hidden]")) return place;
  const dot = field.lastIndexOf(".");
  return dot < 0 ? null : placeOf(field.slice(0, dot));
}

/**
 * @param {string} expected
 * @param {string | undefined} got
 */
export function sentence(expected, got) {
  const text = got === undefined ? expected : `${expected}, got ${got}`;
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * Takes all errors back.
 * @param {ParentNode} root
 */
export function clearFieldErrors(root) {
  for (const control of root.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-describedby");
  }
  for (const text of root.querySelectorAll("[data-error]")) if (text instanceof HTMLElement) text.hidden = true;
}

/**
 * A labelled control with a place for its error.
 * @param {string} name of the field in requests
 * @param {string} label
 * @param {HTMLInputElement | HTMLSelectElement} control
 */
export function labelled(name, label, control) {
  control.id = name;
  control.name = name;
  return asField(name, make("label", { htmlFor: name }, label), control);
}

/**
 * A field of the form: what is in it, and a place for its error.
 * @param {string} name of the field in requests
 * @param {(Node | string)[]} content
 */
export function asField(name, ...content) {
  const error = make("p", { className: "error", hidden: true });
  error.dataset.error = "";
  const field = make("div", { className: "field" }, ...content, error);
  field.dataset.field = name;
  return field;
}

/**
 * A number that can be dragged and typed. The slider spans the usual values, the number takes all that the API takes.
 * @param {string} name of the field in requests
 * @param {string} label
 * @param {{ from: number, to: number, step: number, value: number }} range
 * @param {(value: number) => void} onChange
 */
export function slider(name, label, { from, to, step, value }, onChange) {
  const bounds = { min: String(from), max: String(to), step: String(step) };
  const range = make("input", { type: "range", ...bounds, value: String(value), ariaLabel: `${label}, slider` });
  const number = make("input", { type: "number", step: "any", value: String(value), id: name, name, inputMode: "decimal" });
  number.dataset.control = "";
  range.addEventListener("input", () => {
    number.value = range.value;
    onChange(Number(range.value));
  });
  number.addEventListener("input", () => {
    range.value = number.value;
    if (number.value !== "") onChange(Number(number.value));
  });
  return asField(name, make("label", { htmlFor: name }, label), make("div", { className: "slider" }, range, number));
}

/**
 * A box to tick.
 * @param {string} name of the field in requests
 * @param {string} label
 * @param {boolean} checked
 * @param {(checked: boolean) => void} onChange
 */
export function tick(name, label, checked, onChange) {
  const box = make("input", { type: "checkbox", checked, name });
  box.addEventListener("change", () => onChange(box.checked));
  return asField(name, make("label", { className: "check" }, box, ` ${label}`));
}
