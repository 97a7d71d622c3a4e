import { setUpAccess, showKey, takeKey } from "./access.js";
import { actionButtons, copyGeneration } from "./actions.js";
import { droppedPackages } from "./adapter-upload.js";
import { addAdapter, fillAdapters, forgetAdapter, setUpAdapters } from "./adapters.js";
import { createGeneration, deleteGeneration, listModels } from "./api.js";
import { closeDetails, confirmDelete, openDetails } from "./details.js";
import { setUpDialogs } from "./dialogs.js";
import { byId, make, toast } from "./dom.js";
import { isPicture, setUpDrops } from "./drop.js";
import { isTerminal } from "./follow.js";
import { chooseModel, chosenModel, fillForm, readForm, setUpForm, showModels } from "./form.js";
import { createGallery } from "./gallery.js";
import { clearEndedJobs, showFinished, watchJob } from "./jobs.js";
import { currentKey } from "./key.js";
import { bring, knownAdapter, refreshAdapters, setUpLibrary } from "./library.js";
import { setUpModelList } from "./models.js";
import { setUpPainter } from "./painter.js";
import { refuse } from "./problems.js";
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
setUpDrops({ dropped: take, pasted: picture => void startFrom(picture) });
setUpForm();
setUpDialogs();
byId("open-models", HTMLButtonElement).addEventListener("click", () => byId("models", HTMLDialogElement).showModal());
setUpGenerate();
setUpAccess({ connect: () => void connect(), forgotten: forget, shown: sayEmpty });

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
    takeFromAddress();
    await showMore();
  } catch (error) {
    complain(error);
  }
}

/** Puts what a link names into the form: an adapter that a training has made, its model, a prompt. */
function takeFromAddress() {
  const { searchParams } = new URL(location.href);
  const [named, model, prompt] = ["adapter", "model", "prompt"].map(name => searchParams.get(name));
  const adapter = named && knownAdapter(named);
  if (!adapter) return;
  if (model) chooseModel(model);
  if (prompt) byId("prompt", HTMLTextAreaElement).value = prompt;
  addAdapter(adapter);
  history.replaceState(null, "", location.pathname);
}

/** @param {boolean} isKnown whether there is a key */
function sayEmpty(isKnown) {
  byId("empty-text", HTMLElement).textContent = isKnown
    ? "No pictures yet. Describe one, or begin with an example:"
    : "Connect with your API key to see your pictures.";
}

function forget() {
  gallery.clear();
  byId("examples", HTMLElement).hidden = true;
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
    if (request) void copyGeneration({ ...request, seed: request.seed ?? Math.floor(Math.random() * (MAX_SEED + 1)) });
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
    complain(error);
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
    complain(error);
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
    complain(error);
  }
}

/**
 * What was dropped on the page: pictures to start from, everything else as adapters.
 * @param {DataTransfer} transfer
 */
async function take(transfer) {
  const picture = [...transfer.files].find(isPicture);
  const packages = await droppedPackages(transfer);
  const adapters = packages.filter(({ files }) => files.some(({ file }) => !isPicture(file)));
  if (adapters.length > 0) await bring(adapters);
  else if (picture) await startFrom(picture);
}

/** @param {unknown} error */
function complain(error) {
  refuse(error, byId("form-error", HTMLElement));
}
