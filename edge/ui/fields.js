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
  const place = document.querySelector(`[data-field="${CSS.escape(field)}"]`);
  const control = place?.querySelector("input, textarea, select");
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
  const field = make("div", { className: "field" }, make("label", { htmlFor: name }, label), control);
  const error = make("p", { className: "error", hidden: true });
  error.dataset.error = "";
  field.append(error);
  field.dataset.field = name;
  return field;
}
