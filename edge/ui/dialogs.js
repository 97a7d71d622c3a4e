import { byId } from "./dom.js";

/** Lets the dialogs be closed by their buttons and by a click beside them. */
export function setUpDialogs() {
  for (const box of document.querySelectorAll("dialog")) {
    box.querySelector("[data-close]")?.addEventListener("click", () => box.close());
    if (box.id === "painter") continue; // a stroke that ends beside the picture is no wish to leave
    box.addEventListener("click", event => {
      if (event.target === box) box.close();
    });
  }
}

/**
 * Asks before something is deleted.
 * @param {string} title
 * @param {string} text
 * @returns {Promise<boolean>}
 */
export function confirmation(title, text) {
  const confirm = byId("confirm", HTMLDialogElement);
  byId("confirm-title", HTMLElement).textContent = title;
  byId("confirm-text", HTMLElement).textContent = text;
  confirm.returnValue = "keep";
  confirm.showModal();
  return new Promise(resolve => {
    confirm.addEventListener("close", () => resolve(confirm.returnValue === "delete"), { once: true });
  });
}
