import { getGeneration, listGenerations, onThisOrigin } from "./api.js";
import { pictureSize } from "./describe.js";
import { byId, copyOf, part } from "./dom.js";
import { isTerminal } from "./follow.js";

/** @typedef {import("./api.js").Generation} Generation */
/** @typedef {import("./api.js").Picture} Picture */
/** @typedef {{ open: (generation: Generation, picture: Picture) => void, buttons: (generation: Generation, picture: Picture) => HTMLElement[] }} TileBehaviour */

/** What stands on a tile where no picture is yet, or will be. */
const stateTexts = { queued: "Waiting", running: "Drawing", succeeded: "", failed: "Failed", canceled: "Canceled" };

/**
 * The gallery: a tile for each picture of each generation, newest first. It shows what the server lists and nothing else.
 * @param {TileBehaviour} behaviour
 */
export function createGallery(behaviour) {
  const list = byId("gallery", HTMLElement);
  /** @type {Map<string, HTMLElement[]>} */
  const tiles = new Map();
  /** @type {string | null} */
  let cursor = null;

  /**
   * Adds a generation, or brings its tiles up to date.
   * @param {Generation} generation
   * @param {"start" | "end"} [where]
   */
  function show(generation, where = "start") {
    const known = tiles.get(generation.id);
    const shown = known ?? generation.pictures.map(() => copyOf("tile-template"));
    generation.pictures.forEach((picture, index) => {
      const tile = shown[index];
      if (tile) fillTile(tile, generation, picture, behaviour);
    });
    if (!known) {
      tiles.set(generation.id, shown);
      if (where === "start") list.prepend(...shown);
      else list.append(...shown);
    }
    showEmptiness();
  }

  function showEmptiness() {
    byId("empty", HTMLElement).hidden = tiles.size > 0;
  }

  return {
    show,
    /** Reads the next page. @returns {Promise<Generation[]>} those of it that have not ended */
    async more() {
      const page = await listGenerations(cursor);
      for (const generation of page.data) show(generation, "end");
      cursor = page.next_cursor;
      byId("more-pictures", HTMLButtonElement).hidden = cursor === null;
      showEmptiness();
      return page.data.filter(({ status }) => !isTerminal(status));
    },
    /** @type {import("./jobs.js").Gallery["progress"]} */
    progress(id, index, { step, steps }, preview) {
      const tile = tiles.get(id)?.[index];
      if (!tile) return;
      showState(tile, `${step} / ${steps}`, step / steps);
      if (preview) showImage(tile, preview, "Preview");
    },
    /**
     * Takes a generation away; the focus goes to the tile that follows.
     * @param {string} id
     */
    remove(id) {
      const shown = tiles.get(id) ?? [];
      const next = shown.at(-1)?.nextElementSibling ?? shown[0]?.previousElementSibling;
      for (const tile of shown) tile.remove();
      tiles.delete(id);
      showEmptiness();
      const focus = next?.querySelector("button") ?? byId("gallery-heading", HTMLElement);
      focus.focus();
    },
    clear() {
      tiles.clear();
      list.replaceChildren();
      cursor = null;
      byId("more-pictures", HTMLButtonElement).hidden = true;
      showEmptiness();
    },
  };
}

/**
 * @param {HTMLElement} tile
 * @param {Generation} generation
 * @param {Picture} picture
 * @param {TileBehaviour} behaviour
 */
function fillTile(tile, generation, picture, { open, buttons }) {
  const { prompt } = generation.request;
  tile.dataset.status = picture.status;
  if (picture.sha256) tile.dataset.sha256 = picture.sha256;
  part(tile, "prompt", HTMLElement).textContent = prompt;
  part(tile, "prompt", HTMLElement).title = prompt;
  part(tile, "meta", HTMLElement).textContent = `Seed ${picture.seed} · ${pictureSize(picture)}`;
  part(tile, "cached", HTMLElement).hidden = !picture.cached;
  part(tile, "actions", HTMLElement).replaceChildren(...buttons(generation, picture));
  const button = part(tile, "open", HTMLButtonElement);
  button.disabled = !picture.url;
  button.onclick = () => open(generation, picture);
  button.setAttribute("aria-label", picture.url ? `Details: ${prompt}, seed ${picture.seed}` : `${stateTexts[picture.status]}: ${prompt}`);
  if (picture.url) showPicture(tile, generation, picture);
  else if (picture.status !== "running" || !tile.dataset.live) showState(tile, stateText(generation, picture), null);
  if (isTerminal(picture.status)) delete tile.dataset.live;
}

/**
 * @param {Generation} generation
 * @param {Picture} picture
 */
function stateText(generation, picture) {
  if (picture.status === "failed") return generation.error?.detail ?? generation.error?.title ?? stateTexts.failed;
  return stateTexts[picture.status];
}

/**
 * @param {HTMLElement} tile
 * @param {Generation} generation
 * @param {Picture} picture
 */
function showPicture(tile, generation, picture) {
  showState(tile, "", null);
  const image = showImage(tile, onThisOrigin(picture.url ?? ""), `${generation.request.prompt}, seed ${picture.seed}`);
  image.width = picture.width;
  image.height = picture.height;
  // A signed address expires while the page stays open: one that fails is asked for anew, once.
  image.onerror = async () => {
    image.onerror = () => showState(tile, "The picture cannot be loaded", null);
    const renewed = await getGeneration(generation.id).catch(() => null);
    const url = renewed?.pictures[picture.index]?.url;
    if (url) image.src = onThisOrigin(url);
    else showState(tile, "The picture is gone", null);
  };
}

/**
 * @param {HTMLElement} tile
 * @param {string} source
 * @param {string} alt
 */
function showImage(tile, source, alt) {
  const image = part(tile, "picture", HTMLImageElement);
  image.classList.toggle("preview", source.startsWith("data:"));
  if (image.getAttribute("src") !== source) image.src = source;
  image.alt = alt;
  image.hidden = false;
  return image;
}

/**
 * @param {HTMLElement} tile
 * @param {string} text
 * @param {number | null} done 0 to 1, or null for no bar
 */
function showState(tile, text, done) {
  if (done !== null) tile.dataset.live = "";
  const state = part(tile, "state", HTMLElement);
  state.textContent = text;
  state.hidden = text === "";
  const bar = part(tile, "bar", HTMLElement);
  bar.hidden = done === null;
  bar.style.setProperty("--done", String(done ?? 0));
}
