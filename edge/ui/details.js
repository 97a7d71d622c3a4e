import { onThisOrigin } from "./api.js";
import { recipe } from "./describe.js";
import { confirmation } from "./dialogs.js";
import { byId, make } from "./dom.js";

/** @typedef {import("./api.js").Generation} Generation */
/** @typedef {import("./api.js").Picture} Picture */

const dialog = byId("details", HTMLDialogElement);

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
  const title = many ? `Delete these ${pictures.length} pictures?` : "Delete this picture?";
  return confirmation(title, `${many ? "They were made together: " : ""}${request.prompt}`);
}
