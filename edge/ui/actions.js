import { onThisOrigin } from "./api.js";
import { copyCurl } from "./curl.js";
import { fileName, requestFor } from "./describe.js";
import { icon, make } from "./dom.js";

/** @typedef {import("./api.js").Generation} Generation */
/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */
/** @typedef {import("./api.js").Picture} Picture */
/** @typedef {{ generation: Generation, picture: Picture }} Subject */
/**
 * What the page does for the actions.
 * @typedef {{ submit: (request: GenerationRequest) => void, reuse: (request: GenerationRequest) => void, startFrom: (picture: string) => void, remove: (generation: Generation) => void }} Page
 */
/** @typedef {{ label: string, icon: string, applies: (subject: Subject) => boolean, run: (subject: Subject, page: Page) => void }} Action */

const always = () => true;
const ended = (/** @type {Subject} */ { generation }) => generation.job.finished_at !== null;

/** What can be done with a picture. @type {Action[]} */
const actions = [
  { label: "Repeat", icon: "repeat", applies: ended, run: ({ generation, picture }, page) => page.submit(requestFor(generation, picture)) },
  {
    label: "Reuse settings",
    icon: "reuse",
    applies: always,
    run: ({ generation, picture }, page) =>
      page.reuse({
        ...generation.request,
        ...generation.request.per_image[picture.index],
        seed: picture.seed,
        num_images: 1,
        per_image: [],
      }),
  },
  {
    label: "Use as input",
    icon: "input",
    applies: ({ picture }) => picture.id !== null && picture.url !== null,
    run: ({ picture }, page) => page.startFrom(picture.id ?? ""),
  },
  {
    label: "Copy as curl",
    icon: "curl",
    applies: always,
    run: ({ generation, picture }) => copyGeneration(requestFor(generation, picture)),
  },
  { label: "Download", icon: "download", applies: ({ picture }) => picture.url !== null, run: ({ picture }) => download(picture) },
  { label: "Delete", icon: "delete", applies: ended, run: ({ generation }, page) => page.remove(generation) },
];

/**
 * Buttons for all that can be done with a picture now.
 * @param {Subject} subject
 * @param {Page} page
 * @param {"icons" | "words"} style
 */
export function actionButtons(subject, page, style) {
  return actions
    .filter(({ applies }) => applies(subject))
    .map(action => {
      const button = make("button", { type: "button", className: style === "icons" ? "icon-button" : "button" }, icon(action.icon));
      if (style === "words") button.append(action.label);
      else {
        button.title = action.label;
        button.setAttribute("aria-label", action.label);
      }
      button.dataset.action = action.icon;
      button.addEventListener("click", () => action.run(subject, page));
      return button;
    });
}

/** @param {GenerationRequest} request */
export function copyGeneration(request) {
  return copyCurl("/v1/generations", request, ["Prefer: wait=60"]);
}

/** @param {Picture} picture */
function download(picture) {
  make("a", { href: onThisOrigin(picture.url ?? ""), download: fileName(picture) }).click();
}
