/**
 * What stands at a path such as `variation.seed`, or undefined.
 * @param {unknown} value
 * @param {string} path
 * @returns {unknown}
 */
export function valueAt(value, path) {
  return path.split(".").reduce((inner, key) => (typeof inner === "object" && inner !== null ? Reflect.get(inner, key) : undefined), value);
}

/**
 * Puts a value at a path, with objects on the way there where none are.
 * @param {Record<string, unknown>} target
 * @param {string} path
 * @param {unknown} value
 */
export function putAt(target, path, value) {
  const [key = "", ...rest] = path.split(".");
  if (rest.length === 0) {
    target[key] = value;
    return;
  }
  const inner = /** @type {Record<string, unknown>} */ (target[key] ?? {});
  target[key] = inner;
  putAt(inner, rest.join("."), value);
}
