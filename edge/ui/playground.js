import { actionButtons, copyCurl } from "./actions.js";
import { addAdapter, fillAdapters, forgetAdapter, setUpAdapters } from "./adapters.js";
import { ApiError, createGeneration, deleteGeneration, listModels } from "./api.js";
import { closeDetails, confirmDelete, openDetails, setUpDialogs } from "./details.js";
import { byId, make, toast } from "./dom.js";
import { setUpDrops } from "./drop.js";
import { clearFieldErrors, showFieldErrors } from "./fields.js";
import { isTerminal } from "./follow.js";
import { chooseModel, chosenModel, fillForm, readForm, setUpForm, showModels, showProblem } from "./form.js";
import { createGallery } from "./gallery.js";
import { clearEndedJobs, showFinished, watchJob } from "./jobs.js";
import { currentKey, forgetKey, maskedKey, storeKey } from "./key.js";
import { knownAdapter, refreshAdapters, setUpLibrary } from "./library.js";
import { setUpModelList } from "./models.js";
import { setUpPainter } from "./painter.js";
import { fillSource, setUpSource, startFrom } from "./source.js";

/** @typedef {import("./api.js").Generation} Generation */
/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */

const MAX_SEED = 2 ** 32 - 1;
/** Prompts to begin with, for models whose world is small. @type {Record<string, string[]>} */
const examples = {
  pocket: [
    "a red sphere on a blue floor",
    "a shiny green cube to the left of a small yellow cone, on a white floor at sunset",
    "a watercolor of a striped purple cylinder on a sand floor",
  ],
};

/** @type {import("./actions.js").Page} */
const page = {
  submit: request => void submit(request),
  reuse: request => {
    closeDetails();
    void reuse(request);
  },
  startFrom: picture => {
    closeDetails();
    void startFrom(picture);
  },
  remove: generation => void remove(generation),
};

const gallery = createGallery({
  open: (generation, picture) => openDetails(generation, picture, actionButtons({ generation, picture }, page, "words")),
  buttons: (generation, picture) => actionButtons({ generation, picture }, page, "icons"),
});

setUpSource();
setUpPainter();
setUpAdapters(chosenModel);
setUpLibrary({ model: chosenModel, add: addAdapter, removed: forgetAdapter });
setUpDrops();
setUpForm();
setUpDialogs();
byId("open-models", HTMLButtonElement).addEventListener("click", () => byId("models", HTMLDialogElement).showModal());
setUpKey();
setUpGenerate();
if (currentKey()) void connect();

/** Reads models and pictures with the key that is known. */
async function connect() {
  try {
    const models = await listModels();
    showModels(models);
    setUpModelList(models, chooseModel);
    await refreshAdapters();
    showKey();
    offerExamples();
    gallery.clear();
    await showMore();
  } catch (error) {
    refuse(error);
  }
}

function showKey() {
  const key = currentKey();
  byId("key-form", HTMLElement).hidden = key !== null;
  byId("key-known", HTMLElement).hidden = key === null;
  byId("key-shown", HTMLElement).textContent = key === null ? "" : maskedKey(key);
  byId("empty-text", HTMLElement).textContent =
    key === null ? "Connect with your API key to see your pictures." : "No pictures yet. Describe one, or begin with an example:";
}

function setUpKey() {
  byId("key-form", HTMLFormElement).addEventListener("submit", event => {
    event.preventDefault();
    takeKey();
    if (currentKey()) void connect();
  });
  byId("key-forget", HTMLButtonElement).addEventListener("click", () => {
    forgetKey();
    gallery.clear();
    byId("examples", HTMLElement).hidden = true;
    showKey();
    byId("key", HTMLInputElement).focus();
  });
}

/** Keeps what stands in the key field; an empty field is an error beside it. */
function takeKey() {
  clearFieldErrors(byId("key-form", HTMLFormElement));
  const key = byId("key", HTMLInputElement).value.trim();
  if (key === "") showFieldErrors([{ field: "key", expected: "expected an API key: npm start prints one" }]);
  else storeKey(key, byId("remember", HTMLInputElement).checked);
}

function offerExamples() {
  const list = byId("examples", HTMLElement);
  const prompts = examples[chosenModel()?.name ?? ""] ?? [];
  list.replaceChildren(...prompts.map(prompt => make("li", {}, exampleButton(prompt))));
  list.hidden = prompts.length === 0;
}

/** @param {string} prompt */
function exampleButton(prompt) {
  const button = make("button", { type: "button", className: "example" }, prompt);
  button.addEventListener("click", () => {
    byId("prompt", HTMLTextAreaElement).value = prompt;
    byId("generate", HTMLButtonElement).focus();
  });
  return button;
}

function setUpGenerate() {
  const form = byId("generate-form", HTMLFormElement);
  form.addEventListener("submit", event => {
    event.preventDefault();
    if (!currentKey()) takeKey();
    const request = currentKey() ? readForm() : null;
    if (request) void submit(request);
  });
  form.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  byId("copy-form", HTMLButtonElement).addEventListener("click", () => {
    const request = readForm();
    if (request) void copyCurl({ ...request, seed: request.seed ?? Math.floor(Math.random() * (MAX_SEED + 1)) });
  });
  byId("more-pictures", HTMLButtonElement).addEventListener("click", () => void showMore());
}

/** @param {GenerationRequest} request */
async function submit(request) {
  const button = byId("generate", HTMLButtonElement);
  button.disabled = true;
  closeDetails();
  clearEndedJobs();
  try {
    const generation = await createGeneration(request);
    if (!byId("key-form", HTMLElement).hidden) await connect();
    gallery.show(generation);
    document.querySelector(".tile")?.scrollIntoView({ block: "nearest" });
    if (isTerminal(generation.status)) showFinished(generation);
    else void watchJob(generation, gallery);
  } catch (error) {
    refuse(error);
  } finally {
    button.disabled = false;
  }
}

async function showMore() {
  const button = byId("more-pictures", HTMLButtonElement);
  button.disabled = true;
  try {
    for (const generation of await gallery.more()) void watchJob(generation, gallery);
  } catch (error) {
    refuse(error);
  } finally {
    button.disabled = false;
  }
}

/**
 * Puts the settings of an earlier request into the form, with its inputs and adapters.
 * @param {GenerationRequest} request
 */
async function reuse(request) {
  fillForm(request);
  const gone = fillAdapters(request, knownAdapter);
  if (gone.length > 0) toast(`Adapters that are gone: ${gone.join(", ")}`);
  await fillSource(request);
}

/** @param {Generation} generation */
async function remove(generation) {
  if (!(await confirmDelete(generation))) return;
  try {
    await deleteGeneration(generation.id);
    closeDetails();
    gallery.remove(generation.id);
    toast("Deleted");
  } catch (error) {
    refuse(error);
  }
}

/**
 * Says why something did not work: a refused key beside the key, everything else at the form.
 * @param {unknown} error
 */
function refuse(error) {
  if (!(error instanceof ApiError)) {
    showProblem({ type: "about:blank", title: "The server cannot be reached.", status: 0, code: "unavailable" });
    if (!(error instanceof TypeError)) throw error;
    return;
  }
  if (error.problem.status !== 401) return showProblem(error.problem);
  forgetKey();
  showKey();
  showFieldErrors([{ field: "key", expected: error.message }]);
}
