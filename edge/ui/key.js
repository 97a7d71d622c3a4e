const storageName = "atelier.key";

/** The API key that the visitor gave, or null. It lives in this tab, or on the device where that was asked for. */
export function currentKey() {
  return sessionStorage.getItem(storageName) ?? localStorage.getItem(storageName);
}

/**
 * @param {string} key
 * @param {boolean} remember true: keep it on the device; false: until the tab is closed
 */
export function storeKey(key, remember) {
  forgetKey();
  (remember ? localStorage : sessionStorage).setItem(storageName, key);
}

/** Removes the key from tab and device. */
export function forgetKey() {
  sessionStorage.removeItem(storageName);
  localStorage.removeItem(storageName);
}

/**
 * A key as it may be shown: its public beginning and its last characters.
 * @param {string} key
 */
export function maskedKey(key) {
  const start = key.lastIndexOf("_") + 1;
  return `${key.slice(0, Math.min(start, 16))}…${key.slice(-4)}`;
}
