import { ApiError } from "./api.js";
import { duration, when } from "./describe.js";
import { confirmation } from "./dialogs.js";
import { byId, make, toast } from "./dom.js";
import { isTerminal } from "./follow.js";
import { deleteTraining, listTrainings } from "./training-api.js";
import { methods } from "./training-methods.js";

/** @typedef {import("./training-api.js").Training} Training */

const list = byId("trainings", HTMLElement);
const more = byId("more-trainings", HTMLButtonElement);
/** @type {Training["status"][]} */
const live = ["queued", "running"];
/** @type {{ deleted: (id: string) => void, reuse: (training: Training) => void }} */
let page;
/** @type {string | null} */
let cursor = null;
/** @type {Training[]} */
let trainings = [];

/** @param {typeof page} behaviour */
export function setUpTrainingList(behaviour) {
  page = behaviour;
  more.addEventListener("click", () => void showMore());
}

/** Reads the newest anew. @returns {Promise<readonly Training[]>} */
export async function refreshTrainings() {
  trainings = [];
  cursor = null;
  await readPage();
  return trainings;
}

export function forgetTrainings() {
  trainings = [];
  cursor = null;
  draw();
  byId("no-trainings", HTMLElement).hidden = true;
}

async function showMore() {
  more.disabled = true;
  await readPage().catch(complain);
  more.disabled = false;
}

async function readPage() {
  const page = await listTrainings(cursor);
  trainings = [...trainings, ...page.data];
  cursor = page.next_cursor;
  draw();
}

function draw() {
  list.replaceChildren(...trainings.map(entry));
  more.hidden = cursor === null;
  byId("no-trainings", HTMLElement).hidden = trainings.length > 0;
}

/** @param {Training} training */
function entry(training) {
  const { id, name, status, model, request, created_at, report } = training;
  const facts = [
    methods[request.settings.method].title,
    model,
    request.dry_run ? "estimate" : `${request.steps} steps`,
    report && duration(report.seconds),
    report?.scores && `gain ${(100 * report.scores.gain.value).toFixed(1)} %`,
    when(created_at),
  ];
  const mark = make("span", { className: `state ${status}` }, live.includes(status) ? "running" : status);
  const link = make("a", { href: `#${id}` }, name);
  const text = make("div", {}, make("h3", {}, link, " ", mark), make("p", { className: "hint" }, facts.filter(Boolean).join(" · ")));
  const reuse = make("button", { type: "button", className: "button", ariaLabel: `Settings of ${name} into the form` }, "Reuse");
  reuse.addEventListener("click", () => page.reuse(training));
  const remove = make("button", { type: "button", className: "button danger", ariaLabel: `Delete ${name}` }, "Delete");
  remove.addEventListener("click", () => void removeTraining(training));
  return make("li", { className: "entry entry-head" }, text, make("div", { className: "entry-buttons" }, reuse, remove));
}

/** @param {Training} training */
async function removeTraining({ id, name, status }) {
  const text = isTerminal(status) ? "Its files go, its adapters stay." : "It is canceled, and its checkpoint is gone.";
  if (!(await confirmation(`Delete the training ${name}?`, text))) return;
  try {
    await deleteTraining(id);
    page.deleted(id);
    await refreshTrainings();
    toast("Deleted");
  } catch (error) {
    complain(error);
  }
}

/** @param {unknown} error */
function complain(error) {
  toast(error instanceof ApiError ? error.message : "The server cannot be reached.");
}
