/** @typedef {import("../../shared/adapter.ts").AdapterKind} AdapterKind */
/** @typedef {import("../../shared/generation.ts").AdapterSetting} AdapterSetting */
/** @typedef {{ title: string, settings: readonly (keyof AdapterSetting)[] }} KindOfAdapter */

// The page has no build step, so this repeats shared/generation.ts; test/e2e/playground-tables.test.ts compares the two.

const span = /** @type {const} */ (["weight", "start", "end"]);
const control = /** @type {const} */ ([...span, "image", "preprocess"]);

/** What each kind is called, and which settings a request has for it. @type {Record<AdapterKind, KindOfAdapter>} */
export const adapterKinds = {
  lora: { title: "LoRA", settings: [...span, "text_encoder_weight", "dora"] },
  "textual-inversion": { title: "Textual inversion", settings: ["token"] },
  hypernetwork: { title: "Hypernetwork", settings: span },
  "ip-adapter": { title: "IP-Adapter", settings: [...span, "image", "images", "embedding", "mask", "shortcut"] },
  controlnet: { title: "ControlNet", settings: [...control, "guess_mode", "global_pool", "control_mode"] },
  "t2i-adapter": { title: "T2I-Adapter", settings: control },
};

/** The layout of CLIP vision encoders: trainings of IP-Adapters read pictures with them, requests can't name them. */
export const imageEncoderLayout = "image-encoder";

/** How a control map can be made of a picture. @type {Record<import("../../shared/picture.ts").ControlPreprocessor, string>} */
export const preprocessors = {
  none: "none: it is a map already",
  canny: "canny: edges",
  scribble: "scribble",
  tile: "tile",
  blur: "blur",
  mask: "mask",
};
