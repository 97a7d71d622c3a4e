import { byId } from "./dom.js";
import { clearFieldErrors, showFieldErrors } from "./fields.js";
import { currentKey, forgetKey, maskedKey, storeKey } from "./key.js";

/**
 * What a page does about the key: `connect` reads what it shows and calls `showKey` once that worked, `shown` says whether a key is known.
 * @typedef {{ connect: () => void, forgotten: () => void, shown?: (isKnown: boolean) => void }} Behaviour
 */

/** @type {Behaviour} */
let page;

/**
 * The panel where the visitor gives the API key. One that is known already is used at once.
 * @param {Behaviour} behaviour
 */
export function setUpAccess(behaviour) {
  page = behaviour;
  byId("key-form", HTMLFormElement).addEventListener("submit", event => {
    event.preventDefault();
    takeKey();
    if (currentKey()) page.connect();
  });
  byId("key-forget", HTMLButtonElement).addEventListener("click", () => {
    forgetKey();
    page.forgotten();
    showKey();
    byId("key", HTMLInputElement).focus();
  });
  if (currentKey()) page.connect();
}

export function showKey() {
  const key = currentKey();
  byId("key-form", HTMLElement).hidden = key !== null;
  byId("key-known", HTMLElement).hidden = key === null;
  byId("key-shown", HTMLElement).textContent = key === null ? "" : maskedKey(key);
  page.shown?.(key !== null);
}

/** Keeps what stands in the key field; an empty field is an error beside it. */
export function takeKey() {
  clearFieldErrors(byId("key-form", HTMLFormElement));
  const key = byId("key", HTMLInputElement).value.trim();
  if (key === "") showFieldErrors([{ field: "key", expected: "expected an API key: npm start prints one" }]);
  else storeKey(key, byId("remember", HTMLInputElement).checked);
}

/**
 * Says beside the key why it was refused, and forgets it.
 * @param {string} reason
 */
export function refuseKey(reason) {
  forgetKey();
  showKey();
  showFieldErrors([{ field: "key", expected: reason }]);
}
