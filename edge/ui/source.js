import { byId, make } from "./dom.js";
import { slider } from "./fields.js";
import { openPainter } from "./painter.js";
import { pictureField } from "./picture-field.js";

/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */
/** @typedef {import("./api.js").Model} Model */

/** The picture that a request starts from, what of it is repainted, and what is painted around it. */

const section = byId("source", HTMLDetailsElement);
const form = byId("generate-form", HTMLFormElement);
/** @type {Model | undefined} */
let model;
/** Whether the visitor has chosen the strength. */
let strengthChosen = false;

const picture = pictureField("image", "Picture", {
  hint: "Drop, paste or choose one, or use one of the gallery",
  onChange: () => {
    if (mask.value) mask.set(null);
    if (!picture.value) strengthChosen = false;
    fitSize();
    update();
  },
});
const mask = pictureField("mask", "Mask", { hint: "White where it is repainted. Paint one, or choose a file", onChange: update });
const strength = slider("strength", "Strength", { from: 0, to: 1, step: 0.05, value: 0.8 }, () => {
  strengthChosen = true;
});
const paint = make("button", { type: "button", className: "link-button", id: "paint" }, "Paint");

/** Puts the picture and its mask into the form. */
export function setUpSource() {
  byId("source-picture", HTMLElement).replaceChildren(picture.element);
  byId("source-strength", HTMLElement).replaceChildren(strength);
  byId("source-mask", HTMLElement).replaceChildren(mask.element);
  mask.buttons.prepend(paint);
  paint.addEventListener("click", () => {
    if (picture.value) openPainter(picture.value, painted => void (painted ? mask.send(painted) : mask.set(null)));
  });
  for (const input of byId("source-outpaint", HTMLElement).querySelectorAll("input")) {
    input.addEventListener("change", () => {
      fitSize();
      update();
    });
  }
  update();
}

/** @param {Model} chosen */
export function setSourceModel(chosen) {
  model = chosen;
  if (picture.value) fitSize();
  update();
}

/**
 * Starts from a picture of the gallery, or from a file.
 * @param {string | Blob} what id of a picture, or the file
 */
export async function startFrom(what) {
  section.open = true;
  await (typeof what === "string" ? picture.show(what) : picture.send(what));
  section.scrollIntoView({ block: "nearest" });
  section.querySelector("summary")?.focus({ preventScroll: true });
}

/** Shows what can be said now: of a picture, of a mask, of an edit model. */
function update() {
  const tasks = model?.tasks ?? [];
  const edits = tasks.includes("edit");
  const started = picture.value !== null;
  const paintable = started && tasks.includes("inpaint");
  section.hidden = model !== undefined && tasks.every(task => task === "text-to-image");
  toggle("source-strength", started && !edits);
  toggle("source-edit", started && edits);
  toggle("source-mask", paintable);
  toggle("source-mask-settings", paintable && mask.value !== null);
  toggle("source-outpaint", paintable && mask.value === null);
  if (!strengthChosen) setStrength(mask.value || outpainted() ? 1 : 0.8);
}

/**
 * @param {string} id of a fieldset: what is hidden says nothing in requests
 * @param {boolean} shown
 */
function toggle(id, shown) {
  const group = byId(id, HTMLFieldSetElement);
  group.hidden = !shown;
  group.disabled = !shown;
}

/** @param {number} value */
function setStrength(value) {
  for (const input of strength.querySelectorAll("input")) input.value = String(value);
}

/** Pixels around the picture: left, right, top, bottom. */
function borders() {
  const data = new FormData(form);
  return ["left", "right", "top", "bottom"].map(side => Number(data.get(`outpaint.${side}`) ?? 0));
}

function outpainted() {
  return borders().some(pixels => pixels > 0);
}

/** Gives the result the picture's shape, at no more than the area that the model is used to, as the API does where a request names no size. */
function fitSize() {
  if (!model) return;
  const { defaults, size_multiple: multiple, min_size: least, max_size: most } = model;
  const { width, height } = picture.value ?? {};
  const size = { width: defaults.width, height: defaults.height };
  if (width && height) {
    const scale = Math.min(1, Math.sqrt((defaults.width * defaults.height) / (width * height)));
    const [left = 0, right = 0, top = 0, bottom = 0] = borders();
    const fitted = (/** @type {number} */ pixels, /** @type {number} */ around) =>
      Math.min(most, Math.max(least, Math.round((pixels * scale) / multiple) * multiple + around));
    size.width = fitted(width, left + right);
    size.height = fitted(height, top + bottom);
  }
  byId("width", HTMLInputElement).value = String(size.width);
  byId("height", HTMLInputElement).value = String(size.height);
}

/** What the section asks for beside what its named fields say. @returns {Partial<GenerationRequest>} */
export function readSource() {
  if (!picture.value || section.hidden) return {};
  const paintable = !byId("source-mask", HTMLFieldSetElement).disabled;
  const value = new FormData(form).get("strength");
  return {
    image: picture.value.id,
    ...(value !== null && value !== "" && { strength: Number(value) }),
    ...(mask.value && paintable && { mask: mask.value.id }),
  };
}

/**
 * Shows what an earlier request started from.
 * @param {GenerationRequest} request
 */
export async function fillSource(request) {
  picture.set(null);
  if (request.image) {
    section.open = true;
    await picture.show(request.image);
    if (request.mask && picture.value) await mask.show(request.mask);
    strengthChosen = request.strength !== undefined;
  }
  if (request.strength !== undefined) setStrength(request.strength);
  if (request.width) byId("width", HTMLInputElement).value = String(request.width);
  if (request.height) byId("height", HTMLInputElement).value = String(request.height);
}
