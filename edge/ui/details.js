import { onThisOrigin } from "./api.js";
import { recipe } from "./describe.js";
import { byId, make } from "./dom.js";

/** @typedef {import("./api.js").Generation} Generation */
/** @typedef {import("./api.js").Picture} Picture */

const dialog = byId("details", HTMLDialogElement);
const confirmation = byId("confirm", HTMLDialogElement);

/** Lets the dialogs be closed by their buttons and by a click beside them. */
export function setUpDialogs() {
  dialog.querySelector("[data-close]")?.addEventListener("click", () => dialog.close());
  for (const box of [dialog, confirmation]) {
    box.addEventListener("click", event => {
      if (event.target === box) box.close();
    });
  }
}

/**
 * Shows a picture large, with its recipe.
 * @param {Generation} generation
 * @param {Picture} picture
 * @param {HTMLElement[]} buttons what can be done with it
 */
export function openDetails(generation, picture, buttons) {
  const image = byId("details-picture", HTMLImageElement);
  image.src = onThisOrigin(picture.url ?? "");
  image.width = picture.width;
  image.height = picture.height;
  image.alt = generation.request.prompt;
  byId("details-title", HTMLElement).textContent = generation.request.prompt;
  const rows = recipe(generation, picture).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  byId("recipe", HTMLElement).replaceChildren(...rows);
  byId("details-actions", HTMLElement).replaceChildren(...buttons);
  dialog.showModal();
}

export function closeDetails() {
  dialog.close();
}

/**
 * Asks before something is deleted.
 * @param {Generation} generation
 * @returns {Promise<boolean>}
 */
export function confirmDelete({ pictures, request }) {
  const many = pictures.length > 1;
  byId("confirm-title", HTMLElement).textContent = many ? `Delete these ${pictures.length} pictures?` : "Delete this picture?";
  byId("confirm-text", HTMLElement).textContent = `${many ? "They were made together: " : ""}${request.prompt}`;
  confirmation.returnValue = "keep";
  confirmation.showModal();
  return new Promise(resolve => {
    confirmation.addEventListener("close", () => resolve(confirmation.returnValue === "delete"), { once: true });
  });
}
