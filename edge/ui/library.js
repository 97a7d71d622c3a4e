import { adapterFits } from "./adapter-fit.js";
import { adapterKinds, imageEncoderLayout } from "./adapter-kinds.js";
import { chosenPackages, uploadAdapter } from "./adapter-upload.js";
import { ApiError, deleteAdapter, listAdapters } from "./api.js";
import { fileSize } from "./describe.js";
import { confirmation } from "./dialogs.js";
import { announce, byId, make, toast } from "./dom.js";
import { sentence } from "./fields.js";
import { familyTitle } from "./models.js";

/** @typedef {import("./api.js").Adapter} Adapter */
/** @typedef {import("./api.js").Model} Model */
/** @typedef {import("./adapter-upload.js").Package} Package */

const dialog = byId("library", HTMLDialogElement);
/** @type {Adapter[]} */
let adapters = [];
/** @type {{ model: () => Model | undefined, add: (adapter: Adapter) => void, removed: (id: string) => void }} */
let page;

/**
 * The adapters that the visitor may use, own and public, and the way to bring new ones.
 * @param {typeof page} behaviour
 */
export function setUpLibrary(behaviour) {
  page = behaviour;
  byId("open-library", HTMLButtonElement).addEventListener("click", () => void openLibrary());
  for (const kind of ["files", "folder"]) {
    const input = byId(`adapter-${kind}`, HTMLInputElement);
    byId(`choose-${kind}`, HTMLButtonElement).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      void bring(chosenPackages([...(input.files ?? [])]));
      input.value = "";
    });
  }
}

/** Reads the list anew. */
export async function refreshAdapters() {
  adapters = await listAdapters();
  showList();
}

/** @param {string} id */
export function knownAdapter(id) {
  return adapters.find(adapter => adapter.id === id);
}

export async function openLibrary() {
  for (const settled of document.querySelectorAll("#uploads [data-status]")) settled.remove();
  if (!dialog.open) dialog.showModal();
  showList();
  await refreshAdapters().catch(complain);
}

/**
 * Uploads what was dropped or chosen, one after the other, and says what each is.
 * @param {readonly Package[]} packages
 */
export async function bring(packages) {
  if (!dialog.open) dialog.showModal();
  for (const each of packages) await bringOne(each);
}

/** @param {Package} adapter */
async function bringOne(adapter) {
  const text = make("p", { className: "upload-text" });
  const bar = make("progress", { max: 1, ariaLabel: `Uploading ${adapter.name}` });
  const row = make("li", { className: "upload" }, make("strong", {}, adapter.name), text, bar);
  byId("uploads", HTMLElement).prepend(row);
  try {
    const found = await uploadAdapter(adapter, (step, share) => {
      text.textContent = step;
      if (share === null) bar.removeAttribute("value");
      else bar.value = share;
    });
    row.dataset.status = found.status;
    text.textContent = found.status === "ready" ? whatItIs(found) : `Refused: ${found.reasons.join("; ")}`;
    await refreshAdapters();
  } catch (error) {
    row.dataset.status = "refused";
    text.textContent = `Refused: ${reasonOf(error)}`;
  }
  bar.remove();
  announce(`${adapter.name}: ${text.textContent}`);
}

/** @param {unknown} error */
function reasonOf(error) {
  if (!(error instanceof ApiError)) return error instanceof Error ? error.message : "the file cannot be read";
  const fields = error.problem.errors?.map(({ field, expected, got }) => `${field}: ${sentence(expected, got)}`) ?? [];
  return [error.message, ...fields].join(" ");
}

/** @param {Adapter} adapter */
function whatItIs(adapter) {
  if (isEncoder(adapter)) return "Image encoder. Trainings of IP-Adapters read pictures with it.";
  const misfit = misfitOf(adapter, page.model());
  const kind = adapter.kind ? adapterKinds[adapter.kind].title : "Adapter";
  return `${kind}, ${adapter.manifest?.layout ?? ""}, version ${adapter.version}. ${misfit ?? "Ready to be added."}`;
}

/**
 * Why an adapter can't work on the model; null where it can.
 * @param {Adapter} adapter
 * @param {Model | undefined} model
 */
export function misfitOf({ kind, manifest }, model) {
  const reason = manifest && model ? adapterFits({ kind, ...manifest }, model) : null;
  return reason && model ? `Doesn't fit ${model.name}: ${reason}.` : null;
}

/** Shows the list as it is known, for the model that is chosen. */
export function showList() {
  const shown = adapters.filter(({ status }) => status === "ready");
  byId("adapter-list", HTMLElement).replaceChildren(...shown.map(entry));
  byId("no-adapters", HTMLElement).hidden = shown.length > 0;
}

/** @param {Adapter} adapter */
function isEncoder({ manifest }) {
  return manifest?.layout === imageEncoderLayout;
}

/** @param {Adapter} adapter */
function entry(adapter) {
  const misfit = isEncoder(adapter) ? null : misfitOf(adapter, page.model());
  const add = make("button", { type: "button", className: "button", ariaLabel: `Add ${adapter.name}`, disabled: misfit !== null }, "Add");
  add.addEventListener("click", () => {
    page.add(adapter);
    dialog.close();
  });
  const buttons = make("div", { className: "entry-buttons" }, ...(isEncoder(adapter) ? [] : [add]));
  if (adapter.owned) {
    const remove = make("button", { type: "button", className: "button danger", ariaLabel: `Delete ${adapter.name}` }, "Delete");
    remove.addEventListener("click", () => void removeAdapter(adapter));
    buttons.prepend(remove);
  }
  const text = make("div", {}, make("h3", {}, adapter.name), make("p", { className: "hint" }, description(adapter)));
  if (misfit) text.append(make("p", { className: "error" }, misfit));
  return make("li", { className: "entry entry-head" }, text, buttons);
}

/** @param {Adapter} adapter */
function description({ kind, manifest, version, bytes, visibility, owned }) {
  const width = manifest?.cross_attention_dim ?? manifest?.text_widths.find(each => each !== null);
  const families = manifest?.families.map(familyTitle).join(", ") || (width && `text width ${width}`);
  const isForTraining = manifest?.layout === imageEncoderLayout;
  return [
    isForTraining ? "Image encoder, for trainings of IP-Adapters" : kind ? adapterKinds[kind].title : "",
    manifest?.layout,
    families,
    `version ${version}`,
    fileSize(bytes),
    owned ? visibility === "public" && "public" : "public, another's",
  ]
    .filter(Boolean)
    .join(" · ");
}

/** @param {Adapter} adapter */
async function removeAdapter(adapter) {
  const text = "What was made with it leaves the cache; pictures in the gallery stay.";
  if (!(await confirmation(`Delete the adapter ${adapter.name}?`, text))) return;
  try {
    await deleteAdapter(adapter.id);
    page.removed(adapter.id);
    await refreshAdapters();
    toast("Deleted");
    byId("choose-files", HTMLButtonElement).focus();
  } catch (error) {
    complain(error);
  }
}

/** @param {unknown} error */
function complain(error) {
  toast(error instanceof ApiError ? error.message : "The server cannot be reached.");
}
