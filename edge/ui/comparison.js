import { ApiError, createGeneration, getGeneration, onThisOrigin } from "./api.js";
import { make } from "./dom.js";
import { asField, labelled } from "./fields.js";
import { followJob, isTerminal } from "./follow.js";
import { getTrainingFile } from "./training-api.js";
import { adapterTitle } from "./training-report.js";

/** @typedef {import("./training-api.js").Training} Training */

/** Drawn by the runner at the end: the base's pictures above those with what was learned, a column for each prompt. */
const gridFile = "samples.png";
/** Methods whose results draw after a picture: a prompt alone is no comparison. */
const needPicture = ["ip-adapter", "controlnet"];
const MAX_SEED = 2 ** 32 - 1;

/**
 * Pictures of the base beside those of the result, from the same noise: what the training drew, and what the visitor asks for.
 * @param {Training} training
 * @returns {HTMLElement[]}
 */
export function comparison(training) {
  const { files, adapters, request } = training;
  const pairs = make("ol", { className: "pairs" });
  const hasGrid = files.some(({ path }) => path === gridFile);
  if (hasGrid) void showGrid(training, pairs);
  const mayDraw = adapters.length > 0 && !needPicture.includes(request.settings.method);
  if (!hasGrid && !mayDraw) return [];
  return [make("h3", {}, "Before and after"), ...(mayDraw ? [drawForm(training, pairs)] : []), pairs];
}

/**
 * @param {string} prompt
 * @param {HTMLElement} before
 * @param {HTMLElement} after
 */
function pair(prompt, before, after) {
  const figure = (/** @type {HTMLElement} */ picture, /** @type {string} */ title) =>
    make("figure", {}, picture, make("figcaption", { className: "hint" }, title));
  return make(
    "li",
    { className: "pair-shown" },
    make("div", { className: "pair" }, figure(before, "Base"), figure(after, "Trained")),
    make("p", { className: "tile-prompt", title: prompt }, prompt),
  );
}

/**
 * @param {Training} training
 * @param {HTMLElement} list
 */
async function showGrid({ id, request }, list) {
  const file = await getTrainingFile(id, gridFile).catch(() => null);
  const grid = file && (await createImageBitmap(file));
  if (!grid) return;
  const side = grid.height / 2;
  const columns = Math.round(grid.width / side);
  for (let column = 0; column < columns; column++) {
    const prompt = request.sample_prompts[column] ?? `a caption of the dataset, seed ${request.seed}`;
    const [before, after] = [0, 1].map(row => {
      const canvas = make("canvas", { width: side, height: side, role: "img" });
      canvas.ariaLabel = `${prompt}, ${row === 0 ? "base" : "trained"}`;
      canvas.getContext("2d")?.drawImage(grid, column * side, row * side, side, side, 0, 0, side, side);
      return canvas;
    });
    if (before && after) list.append(pair(prompt, before, after));
  }
}

/**
 * @param {Training} training
 * @param {HTMLElement} list
 */
function drawForm(training, list) {
  const { adapters, request, model } = training;
  const [token = ""] = request.concepts.map(concept => concept.token);
  const prompt = make("input", { value: request.sample_prompts[0] ?? token });
  const seed = make("input", { type: "number", inputMode: "numeric", min: "0", max: String(MAX_SEED), placeholder: "random" });
  const which = make("select", {}, ...adapters.map((id, i) => new Option(adapterTitle(training, i), id)));
  const button = make("button", { type: "submit", className: "button" }, "Draw both");
  const error = make("p", { className: "error", hidden: true, role: "alert" });
  const form = make(
    "form",
    { className: "compare-form", noValidate: true, ariaLabel: "Before and after" },
    labelled("compare.prompt", "Prompt", prompt),
    labelled("compare.seed", "Seed", seed),
    ...(adapters.length > 1 ? [labelled("compare.adapter", "Which", which)] : []),
    asField("compare", button),
    error,
  );
  form.addEventListener("submit", async event => {
    event.preventDefault();
    button.disabled = true;
    error.hidden = true;
    try {
      const chosen = seed.value === "" ? Math.floor(Math.random() * (MAX_SEED + 1)) : Number(seed.value);
      const asked = { prompt: prompt.value, model, seed: chosen };
      const [before, after] = await Promise.all([drawn(asked), drawn({ ...asked, adapters: [{ adapter: which.value }] })]);
      list.prepend(pair(`${asked.prompt}, seed ${chosen}`, before, after));
    } catch (problem) {
      error.textContent = problem instanceof ApiError ? reasonOf(problem) : "The server cannot be reached.";
      error.hidden = false;
    }
    button.disabled = false;
  });
  return form;
}

/** @param {ApiError} error */
function reasonOf({ message, problem }) {
  const [first] = problem.errors ?? [];
  return first ? `${first.field}: expected ${first.expected}, got ${first.got ?? "nothing"}` : message;
}

/**
 * The picture that a request makes.
 * @param {import("./api.js").GenerationRequest} request
 */
async function drawn(request) {
  const accepted = await createGeneration(request);
  if (!isTerminal(accepted.status)) await followJob(accepted.job.id, { onEvent: () => {}, onJob: () => {} });
  const { pictures, error, status } = await getGeneration(accepted.id);
  const [picture] = pictures;
  if (!picture?.url) throw new ApiError(error ?? { type: "about:blank", title: `The picture is ${status}.`, status: 0, code: "internal" });
  return make("img", { src: onThisOrigin(picture.url), alt: `${request.prompt}, ${request.adapters ? "trained" : "base"}` });
}
