import { ApiError } from "./api.js";
import { make } from "./dom.js";
import { changeItem, getDatasetPicture } from "./training-api.js";

/** @typedef {import("./training-api.js").Dataset} Dataset */
/** @typedef {import("./training-api.js").DatasetItem} Item */
/** @typedef {import("./training-api.js").DatasetItemPatch} Patch */

/** What a picture is for. @type {Record<Item["split"], string>} */
export const splits = {
  train: "train: learned from",
  validation: "validation: chooses weights",
  test: "test: scored",
  prior: "prior: generic",
};

/** Pictures that are shown, to be let go of with their cards. @type {Set<string>} */
const urls = new Set();
const seen = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    target.dispatchEvent(new Event("seen"));
  }
});

/** Lets go of the pictures of a dataset that is shown no more. */
export function forgetPictures() {
  for (const url of urls) URL.revokeObjectURL(url);
  urls.clear();
  seen.disconnect();
}

/**
 * A picture of a dataset with what is said of it, which can be changed.
 * @param {Dataset} dataset
 * @param {number} index
 * @param {readonly string[]} tokens of the concepts that the training is to learn
 * @param {() => void} onChange
 */
export function itemCard(dataset, index, tokens, onChange) {
  const item = /** @type {Item} */ (dataset.items[index]);
  const label = `picture ${index + 1}`;
  const image = make("img", { alt: item.caption || label, width: item.width, height: item.height });
  const media = make("div", { className: "card-media" }, image);
  const notes = [item.mask && "mask", item.condition && "condition"].filter(Boolean).join(", ");
  if (notes) media.append(make("span", { className: "badge" }, notes));
  const state = make("p", { className: "hint", role: "status" }, `${item.width} × ${item.height}`);
  const caption = make("textarea", { value: item.caption, rows: 2, placeholder: "no caption", ariaLabel: `Caption of ${label}` });
  const split = make(
    "select",
    { ariaLabel: `Use of ${label}` },
    ...Object.entries(splits).map(([value, title]) => new Option(title, value)),
  );
  split.value = item.split;
  const card = make("li", { className: "card" }, media, caption, split);
  card.dataset.sha256 = item.sha256;
  const save = async (/** @type {Patch} */ changes, /** @type {HTMLElement} */ control) => {
    state.className = "hint";
    state.textContent = "Saving …";
    control.removeAttribute("aria-invalid");
    try {
      Object.assign(item, await changeItem(dataset.id, item.sha256, changes));
      state.textContent = "Saved";
      onChange();
    } catch (error) {
      state.className = "error";
      state.textContent = error instanceof ApiError ? reasonOf(error) : "Not saved: the server cannot be reached.";
      control.setAttribute("aria-invalid", "true");
    }
  };
  caption.addEventListener("change", () => void save({ caption: caption.value.trim() }, caption));
  split.addEventListener("change", () => void save({ split: /** @type {Item["split"]} */ (split.value) }, split));
  if (tokens.length > 1) {
    const concept = make("select", { ariaLabel: `Concept of ${label}` }, ...tokens.map((token, i) => new Option(token, String(i))));
    concept.value = String(item.concept);
    concept.addEventListener("change", () => void save({ concept: Number(concept.value) }, concept));
    card.append(concept);
  }
  card.append(state);
  media.addEventListener("seen", () => void showPicture(image, dataset.id, item.sha256));
  seen.observe(media);
  return card;
}

/** @param {ApiError} error */
function reasonOf({ message, problem }) {
  const [first] = problem.errors ?? [];
  return first ? `Not saved: expected ${first.expected}, got ${first.got ?? "nothing"}` : `Not saved: ${message}`;
}

/**
 * @param {HTMLImageElement} image
 * @param {string} dataset
 * @param {string} sha256
 */
async function showPicture(image, dataset, sha256) {
  const file = await getDatasetPicture(dataset, sha256).catch(() => null);
  if (!file) {
    image.alt = "The picture cannot be loaded";
    return;
  }
  const url = URL.createObjectURL(file);
  urls.add(url);
  image.src = url;
}
