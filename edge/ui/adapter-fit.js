/** @typedef {import("./api.js").Model} Model */
/** @typedef {import("./api.js").Adapter} Adapter */
/** @typedef {Pick<NonNullable<Adapter["manifest"]>, "families" | "cross_attention_dim" | "text_widths"> & { kind: Adapter["kind"] }} Fitted */

// The page has no build step, so this repeats shared/adapter-fit.ts; test/e2e/playground-tables.test.ts compares the two.

/** What a width is called by those who know models by name. @type {Record<number, string>} */
const names = { 768: "SD 1", 1024: "SD 2", 2048: "SDXL", 1280: "SDXL's refiner" };

/**
 * Null where an adapter fits a model, as far as its headers tell; else a sentence with both widths.
 * @param {Fitted} adapter
 * @param {Pick<Model, "family" | "cross_attention_dim" | "text_widths">} base
 * @returns {string | null}
 */
export function adapterFits(adapter, base) {
  const { cross_attention_dim: width } = adapter;
  if (width !== null && width !== base.cross_attention_dim)
    return `expected an adapter for text states of width ${named(base.cross_attention_dim)}, got one for ${named(width)}`;
  return textFits(adapter, base) ?? familyFits(adapter, base);
}

/** @param {number} width */
function named(width) {
  return names[width] ? `${width} (${names[width]})` : String(width);
}

/**
 * An SDXL refiner's one encoder is the second of SDXL: what an adapter has for the first is left out there.
 * @param {Fitted} adapter
 * @param {Pick<Model, "family" | "text_widths">} base
 */
function textFits({ kind, text_widths: wanted }, { family, text_widths: own }) {
  /** @type {(number | null)[]} */
  const encoders = family === "sdxl-refiner" ? [null, ...own] : own;
  const message = (/** @type {string} */ got) => `expected an adapter for text encoders of width ${own.join(" and ")}, got one for ${got}`;
  const all = wanted.map(width => width ?? "none").join(" and ");
  const [only] = wanted;
  if (kind === "textual-inversion" && wanted.length === 1 && only != null) return own.includes(only) ? null : message(String(only));
  if (wanted.some((width, i) => width !== null && encoders[i] !== null && width !== encoders[i])) return message(all);
  const reaches = wanted.length === 0 || wanted.some((width, i) => width !== null && width === encoders[i]);
  return reaches || kind !== "textual-inversion" ? null : message(all);
}

/**
 * @param {Pick<Fitted, "families">} adapter
 * @param {Pick<Model, "family">} base
 */
function familyFits({ families }, { family }) {
  if (families.length === 0 || families.includes(family)) return null;
  return `expected an adapter for ${family}, got one for ${families.join(" or ")}`;
}
