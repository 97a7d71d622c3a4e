import { ApiError } from "./api.js";
import { datasetOf } from "./dataset-files.js";
import { forgetPictures, itemCard } from "./dataset-items.js";
import { confirmation } from "./dialogs.js";
import { announce, byId, toast } from "./dom.js";
import { droppedFiles } from "./dropped-files.js";
import { acceptDrops } from "./picture-field.js";
import { refuse } from "./problems.js";
import { changeItem, deleteDataset, getDataset, listDatasets } from "./training-api.js";

/** @typedef {import("./dropped-files.js").PathFile} PathFile */
/** @typedef {import("./training-api.js").Dataset} Dataset */
/** @typedef {import("./training-api.js").DatasetItemPatch} Patch */

const select = byId("dataset", HTMLSelectElement);
const list = byId("items", HTMLElement);
/** @type {Dataset | null} */
let current = null;
/** What the concepts of the training are called. @type {readonly string[]} */
let tokens = [];

/** The datasets that there are, the pictures of the chosen one, and the way to bring new ones. */
export function setUpDatasets() {
  select.addEventListener("change", () => void show(select.value || null));
  const input = byId("dataset-files", HTMLInputElement);
  byId("choose-pictures", HTMLButtonElement).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    void bringPictures(
      "",
      [...(input.files ?? [])].map(file => ({ path: file.name, file })),
    );
    input.value = "";
  });
  acceptDrops(byId("dataset-drop", HTMLElement), transfer => void takeDropped(transfer));
  byId("dataset-delete", HTMLButtonElement).addEventListener("click", () => void remove());
  byId("caption-all", HTMLFormElement).addEventListener("submit", event => {
    event.preventDefault();
    const caption = byId("caption-text", HTMLInputElement).value.trim();
    if (caption !== "") void changeAll(item => (item.caption === "" ? { caption } : null));
  });
  byId("hold-out", HTMLButtonElement).addEventListener("click", () => void holdOut());
}

/**
 * Reads which datasets there are and shows one of them.
 * @param {string} [wanted] absent: the newest
 */
export async function refreshDatasets(wanted) {
  const datasets = await listDatasets();
  select.replaceChildren(...datasets.map(({ id, name, pictures }) => new Option(`${name} (${pictures})`, id)));
  if (datasets.length === 0) select.replaceChildren(new Option("none yet: drop pictures", ""));
  const shown = datasets.find(({ id }) => id === wanted) ?? datasets[0];
  if (shown) select.value = shown.id;
  await show(shown?.id ?? null);
}

/** The dataset that is shown, as the server has it. */
export function chosenDataset() {
  return current;
}

/**
 * Shows one of the datasets.
 * @param {string} id
 */
export async function chooseDataset(id) {
  if (![...select.options].some(({ value }) => value === id)) return;
  select.value = id;
  await show(id);
}

/** @param {readonly string[]} named tokens of the concepts: with several, each picture says which it shows */
export function showConcepts(named) {
  if (named.length === tokens.length && named.every((token, i) => token === tokens[i])) return;
  const before = tokens;
  tokens = named;
  if (before.length > 1 || named.length > 1) draw();
}

export function forgetDatasets() {
  select.replaceChildren();
  void show(null);
}

/** @param {DataTransfer} transfer */
export async function takeDropped(transfer) {
  const dropped = await droppedFiles(transfer);
  const [first] = dropped;
  const name = dropped.length === 1 && (first?.isFolder || /\.zip$/i.test(first?.name ?? "")) ? first?.name : "";
  await bringPictures(
    name ?? "",
    dropped.flatMap(({ files }) => files),
  );
}

/**
 * Makes a dataset of files.
 * @param {string} name of the folder or zip that they were in, or none
 * @param {readonly PathFile[]} files
 */
export async function bringPictures(name, files) {
  const error = byId("dataset-error", HTMLElement);
  const bar = byId("dataset-progress", HTMLProgressElement);
  error.hidden = true;
  bar.hidden = false;
  try {
    const zip = files.length === 1 ? files[0]?.path : undefined;
    const called = (name || zip || new Date().toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }))
      .replace(/\.zip$/i, "")
      .slice(0, 100);
    const made = await datasetOf(called, files, (text, share) => {
      bar.setAttribute("aria-label", text);
      if (share === null || share === 1) bar.removeAttribute("value");
      else bar.value = share;
    });
    await refreshDatasets(made.id);
    announce(`${made.pictures} pictures are there.`);
  } catch (problem) {
    if (problem instanceof ApiError || problem instanceof TypeError) refuse(problem, error);
    else error.replaceChildren(problem instanceof Error ? problem.message : "The files cannot be read.");
    error.hidden = false;
  }
  bar.hidden = true;
}

/** @param {string | null} id */
async function show(id) {
  try {
    current = id === null ? null : await getDataset(id);
  } catch (error) {
    current = null;
    toast(error instanceof ApiError ? error.message : "The server cannot be reached.");
  }
  draw();
}

function draw() {
  forgetPictures();
  const dataset = current;
  list.replaceChildren(...(dataset?.items.map((_, index) => itemCard(dataset, index, tokens, sayCounts)) ?? []));
  byId("dataset-tools", HTMLElement).hidden = dataset === null;
  byId("dataset-delete", HTMLElement).hidden = dataset === null;
  sayCounts();
}

/** How many pictures do what, in a line. */
function sayCounts() {
  const items = current?.items ?? [];
  const of = (/** @type {string} */ split) => items.filter(item => item.split === split).length;
  const bare = items.filter(({ caption }) => caption === "").length;
  const parts = [
    `${of("train")} to learn from`,
    of("validation") > 0 && `${of("validation")} to choose by`,
    of("test") > 0 && `${of("test")} to score`,
    of("prior") > 0 && `${of("prior")} generic`,
    bare > 0 && `${bare} without caption`,
  ];
  byId("dataset-counts", HTMLElement).textContent = items.length === 0 ? "" : parts.filter(Boolean).join(" · ");
  byId("caption-all", HTMLElement).hidden = bare === 0;
  byId("hold-out", HTMLElement).textContent = of("test") > 0 ? "Hold out none" : "Hold out a fifth";
}

/** Every fifth picture is kept back for the scores; where some are, none is from now on. */
async function holdOut() {
  const isHeld = current?.items.some(({ split }) => split === "test") ?? false;
  const learned = current?.items.filter(({ split }) => split === "train") ?? [];
  const chosen = new Set(learned.filter((_, i) => i % 5 === 4).map(({ sha256 }) => sha256));
  if (!isHeld && chosen.size === 0) return toast("Five pictures are needed to keep one back.");
  await changeAll(item => {
    if (isHeld) return item.split === "test" ? { split: "train" } : null;
    return chosen.has(item.sha256) ? { split: "test" } : null;
  });
}

/** @param {(item: Dataset["items"][number]) => Patch | null} changesOf */
async function changeAll(changesOf) {
  const dataset = current;
  if (!dataset) return;
  try {
    for (const item of dataset.items) {
      const changes = changesOf(item);
      if (changes) Object.assign(item, await changeItem(dataset.id, item.sha256, changes));
    }
  } catch (error) {
    refuse(error, byId("dataset-error", HTMLElement));
  }
  if (current === dataset) draw();
}

async function remove() {
  const dataset = current;
  if (!dataset) return;
  if (!(await confirmation(`Delete the dataset ${dataset.name}?`, "Trainings that have begun go on."))) return;
  try {
    await deleteDataset(dataset.id);
    await refreshDatasets();
    toast("Deleted");
    select.focus();
  } catch (error) {
    refuse(error, byId("dataset-error", HTMLElement));
  }
}
