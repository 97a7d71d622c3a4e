import { toast } from "./dom.js";

/**
 * Takes files that are dropped anywhere on the page, and pictures that are pasted.
 * @param {{ dropped: (transfer: DataTransfer) => Promise<void>, pasted: (picture: File) => void }} page
 */
export function setUpDrops({ dropped, pasted }) {
  let depth = 0;
  const mark = (/** @type {boolean} */ over) => document.body.toggleAttribute("data-dragging", over);
  addEventListener("dragenter", event => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    depth += 1;
    mark(true);
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) mark(false);
  });
  addEventListener("dragover", event => {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
  addEventListener("drop", event => {
    depth = 0;
    mark(false);
    // A field that takes pictures has taken it already.
    if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    dropped(event.dataTransfer).catch(() => toast("What was dropped cannot be read."));
  });
  addEventListener("paste", event => {
    const picture = [...(event.clipboardData?.files ?? [])].find(isPicture);
    if (!picture) return;
    event.preventDefault();
    pasted(picture);
  });
}

/** @param {File} file */
export function isPicture({ type }) {
  return type.startsWith("image/");
}
