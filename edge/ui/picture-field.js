import { ApiError, getPicture, getUpload, uploadInput } from "./api.js";
import { icon, make, toast } from "./dom.js";
import { asField } from "./fields.js";

/** What an input is: its id, how it looks where that is known, and its size. @typedef {{ id: string, url: string | null, width: number | null, height: number | null }} Input */
/** @typedef {{ onChange: (input: Input | null) => void, accepts?: "picture" | "embedding", hint?: string }} Options */

/** Pictures that this page has seen, by id. @type {Map<string, Input>} */
const seen = new Map();
const taken = ["image/png", "image/webp", "image/jpeg"];

/**
 * A file of the visitor's as an input: uploaded once, and from then on named by its id.
 * @param {Blob} file
 * @param {"picture" | "embedding"} [as]
 * @returns {Promise<Input>}
 */
export async function inputOf(file, as = "picture") {
  const sent = as === "embedding" ? new Blob([file], { type: "application/x-safetensors" }) : await takenPicture(file);
  const { id, width, height } = await uploadInput(sent);
  return remember({ id, width, height, url: as === "picture" ? URL.createObjectURL(sent) : null });
}

/**
 * A picture in a format that the API takes: others that the browser can show become PNG.
 * @param {Blob} file
 */
export async function takenPicture(file) {
  if (taken.includes(file.type)) return file;
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new ApiError({
      type: "about:blank",
      title: "That file is not a picture that the browser can read.",
      status: 0,
      code: "invalid_request",
    });
  });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

/** @param {Input} input */
function remember(input) {
  seen.set(input.id, input);
  return input;
}

/**
 * An input by its id, with its look: of a picture from the server, of an upload from what this page has sent.
 * @param {string} id
 * @returns {Promise<Input>}
 */
export async function inputById(id) {
  const known = seen.get(id);
  if (known) return known;
  if (id.startsWith("pic_")) {
    const url = URL.createObjectURL(await getPicture(id));
    const image = make("img", { src: url });
    await image.decode();
    return remember({ id, url, width: image.naturalWidth, height: image.naturalHeight });
  }
  const { width, height } = await getUpload(id);
  return remember({ id, url: null, width, height });
}

/**
 * A field for a picture (or a file) that a request names by id: by choosing, dropping, or from the gallery.
 * @param {string} name of the field in requests
 * @param {string} label
 * @param {Options} options
 */
export function pictureField(name, label, { onChange, accepts = "picture", hint = "Drop or choose a picture" }) {
  /** @type {Input | null} */
  let current = null;
  const file = make("input", {
    type: "file",
    hidden: true,
    ariaLabel: `${label}: file`,
    accept: accepts === "picture" ? "image/*" : ".safetensors",
  });
  const look = make("div", { className: "picture-look" });
  const caption = make("span", { className: "hint" });
  const choose = make("button", { type: "button", className: "link-button", ariaLabel: `${label}: choose a file` }, "Choose");
  choose.dataset.control = "";
  const remove = make("button", { type: "button", className: "link-button", ariaLabel: `${label}: remove` }, "Remove");
  const buttons = make("div", { className: "picture-buttons" }, choose, remove);
  const box = make("div", { className: "picture-field" }, look, make("div", { className: "picture-text" }, caption, buttons), file);
  const element = asField(name, make("span", { className: "label" }, label), box);

  function draw() {
    remove.hidden = current === null;
    choose.textContent = current ? "Replace" : "Choose";
    caption.textContent = current ? captionOf(current, accepts) : hint;
    look.replaceChildren(current?.url ? make("img", { src: current.url, alt: label }) : icon(current ? "done" : "picture"));
  }

  /** @param {Input | null} input */
  function set(input) {
    current = input;
    draw();
    onChange(input);
  }

  /** @param {() => Promise<Input>} find */
  async function take(find) {
    box.setAttribute("aria-busy", "true");
    caption.textContent = "Sending …";
    try {
      set(await find());
    } catch (error) {
      draw();
      toast(error instanceof ApiError ? error.message : "The picture cannot be read.");
    } finally {
      box.removeAttribute("aria-busy");
    }
  }

  choose.addEventListener("click", () => file.click());
  remove.addEventListener("click", () => {
    set(null);
    choose.focus();
  });
  file.addEventListener("change", () => {
    const chosen = file.files?.[0];
    if (chosen) void take(() => inputOf(chosen, accepts));
    file.value = "";
  });
  acceptDrops(box, transfer => {
    const id = galleryPicture(transfer);
    const dropped = transfer.files[0];
    if (id && accepts === "picture") void take(() => inputById(id));
    else if (dropped) void take(() => inputOf(dropped, accepts));
  });
  draw();
  return {
    element,
    buttons,
    get value() {
      return current;
    },
    set,
    /** @param {string} id */
    show: id => take(() => inputById(id)),
    /** @param {Blob} chosen */
    send: chosen => take(() => inputOf(chosen, accepts)),
  };
}

/**
 * @param {Input} input
 * @param {"picture" | "embedding"} accepts
 */
function captionOf({ id, url, width, height }, accepts) {
  const what = id.startsWith("pic_") ? "From the gallery" : accepts === "picture" ? "Uploaded" : "Uploaded file";
  const size = width && height ? `, ${width} × ${height} px` : "";
  return `${what}${size}${url || accepts === "embedding" ? "" : ", sent earlier"}`;
}

/**
 * The id of a picture of this page's gallery that is dragged.
 * @param {DataTransfer} transfer
 */
function galleryPicture(transfer) {
  return /\/v1\/pictures\/(pic_[0-9A-Z]{26})/.exec(transfer.getData("text/uri-list"))?.[1] ?? null;
}

/**
 * @param {HTMLElement} element
 * @param {(transfer: DataTransfer) => void} onDrop
 */
export function acceptDrops(element, onDrop) {
  element.addEventListener("dragover", event => {
    event.preventDefault();
    element.dataset.over = "";
  });
  element.addEventListener("dragleave", () => delete element.dataset.over);
  element.addEventListener("drop", event => {
    event.preventDefault();
    delete element.dataset.over;
    if (event.dataTransfer) onDrop(event.dataTransfer);
  });
}
