import { droppedPackages } from "./adapter-upload.js";
import { toast } from "./dom.js";
import { bring } from "./library.js";
import { startFrom } from "./source.js";

/** Takes files that are dropped anywhere on the page or pasted: pictures to start from, everything else as adapters. */
export function setUpDrops() {
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
    take(event.dataTransfer).catch(() => toast("What was dropped cannot be read."));
  });
  addEventListener("paste", event => {
    const picture = [...(event.clipboardData?.files ?? [])].find(isPicture);
    if (!picture) return;
    event.preventDefault();
    void startFrom(picture);
  });
}

/** @param {DataTransfer} transfer */
async function take(transfer) {
  const picture = [...transfer.files].find(isPicture);
  const packages = await droppedPackages(transfer);
  const adapters = packages.filter(({ files }) => files.some(({ file }) => !isPicture(file)));
  if (adapters.length > 0) await bring(adapters);
  else if (picture) await startFrom(picture);
}

/** @param {File} file */
function isPicture({ type }) {
  return type.startsWith("image/");
}
