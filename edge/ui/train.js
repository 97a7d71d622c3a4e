import { setUpAccess, showKey, takeKey } from "./access.js";
import { ApiError, listAdapters, listModels } from "./api.js";
import { copyCurl } from "./curl.js";
import { chooseDataset, forgetDatasets, refreshDatasets, setUpDatasets, takeDropped } from "./dataset.js";
import { duration, fileSize } from "./describe.js";
import { setUpDialogs } from "./dialogs.js";
import { byId, make, toast } from "./dom.js";
import { setUpDrops } from "./drop.js";
import { followJob } from "./follow.js";
import { currentKey } from "./key.js";
import { refuse } from "./problems.js";
import { createTraining, deleteTraining, getTraining } from "./training-api.js";
import { fillTraining, readTraining, setUpTrainingForm, showChoices } from "./training-form.js";
import { forgetTrainings, refreshTrainings, setUpTrainingList } from "./training-list.js";
import { closeTraining, openTraining, setUpTrainingView } from "./training-view.js";

/** @typedef {import("./training-api.js").Training} Training */
/** @typedef {import("./training-api.js").TrainingRequest} TrainingRequest */

const formError = byId("form-error", HTMLElement);
const estimate = byId("estimate", HTMLButtonElement);
const train = byId("train", HTMLButtonElement);

setUpDialogs();
setUpDatasets();
setUpTrainingForm();
setUpTrainingView(() => void refresh());
setUpTrainingList({
  deleted: id => {
    if (location.hash === `#${id}`) location.hash = "";
  },
  reuse: training => void reuse(training),
});
setUpDrops({ dropped: takeDropped, pasted: () => {} });
setUpSubmit();
addEventListener("hashchange", showChosen);
setUpAccess({ connect: () => void connect(), forgotten: forget });

async function connect() {
  try {
    await refresh();
    await refreshDatasets();
    showKey();
    showChosen();
  } catch (error) {
    refuse(error, formError);
  }
}

/** Reads models, adapters and trainings anew. */
async function refresh() {
  const [models, adapters, trainings] = await Promise.all([listModels(), listAdapters(), refreshTrainings()]);
  showChoices(models, adapters, trainings);
}

function forget() {
  closeTraining();
  forgetDatasets();
  forgetTrainings();
}

/** Opens the training that the address names: so a reload goes on with it. */
function showChosen() {
  const [id] = /trn_[0-9A-Z]{26}/.exec(location.hash) ?? [];
  if (!id) return closeTraining();
  byId("pictures", HTMLDetailsElement).open = false;
  openTraining(id).catch(error => toast(error instanceof ApiError ? error.message : "The server cannot be reached."));
}

function setUpSubmit() {
  byId("train-form", HTMLFormElement).addEventListener("submit", event => {
    event.preventDefault();
    ask(start);
  });
  estimate.addEventListener("click", () => ask(measure));
  byId("copy-form", HTMLButtonElement).addEventListener("click", () => {
    const request = readTraining();
    if (request) void copyCurl("/v1/trainings", request);
  });
}

/** @param {(request: TrainingRequest) => Promise<void>} what */
async function ask(what) {
  if (!currentKey()) takeKey();
  const request = currentKey() ? readTraining() : null;
  if (!request) return;
  for (const button of [train, estimate]) button.disabled = true;
  byId("estimate-text", HTMLElement).textContent = "";
  try {
    await what(request);
  } catch (error) {
    refuse(error, formError);
  }
  for (const button of [train, estimate]) button.disabled = false;
}

/** @param {TrainingRequest} request */
async function start(request) {
  const { id } = await createTraining(request);
  location.hash = id;
  await refresh();
  byId("training-title", HTMLElement).focus();
}

/**
 * A dry run: a few steps, from which the runner tells time and memory of the whole. It leaves no training behind.
 * @param {TrainingRequest} request
 */
async function measure(request) {
  const text = byId("estimate-text", HTMLElement);
  const stopped = new AbortController();
  const stop = make("button", { type: "button", className: "link-button" }, "Stop");
  stop.addEventListener("click", () => stopped.abort());
  text.replaceChildren("Measuring …", stop);
  const { id, job } = await createTraining({ ...request, dry_run: true });
  const onJob = (/** @type {{ status: string }} */ { status }) => {
    if (status === "queued") text.replaceChildren("Waiting for a runner …", stop);
  };
  await followJob(job.id, { onEvent: () => {}, onJob }, stopped.signal);
  text.textContent = stopped.signal.aborted ? "" : measured(await getTraining(id));
  await deleteTraining(id);
}

/** @param {Training} training of a dry run that has ended */
function measured({ estimate: found, error, status }) {
  if (!found) return `Not measured: ${error?.detail ?? error?.title ?? status}`;
  return `${found.steps} steps in about ${duration(found.seconds)} with at most ${fileSize(found.memory_bytes)} of memory.`;
}

/**
 * Puts the settings of an earlier training into the form, and its dataset.
 * @param {Training} training
 */
async function reuse(training) {
  fillTraining(training);
  await chooseDataset(training.dataset);
  byId("name", HTMLInputElement).focus();
}
