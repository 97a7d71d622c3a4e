import { byId, make } from "./dom.js";

/** @typedef {import("./api.js").Model} Model */

/** @type {Record<Model["family"], string>} */
const families = { sd1: "Stable Diffusion 1", sd2: "Stable Diffusion 2", sdxl: "SDXL", "sdxl-refiner": "SDXL refiner" };
/** @type {Record<Model["tasks"][number], string>} */
const tasks = { "text-to-image": "text to image", "image-to-image": "image to image", inpaint: "inpaint", edit: "edit by instruction" };
/** @type {Record<Model["prediction_type"], string>} */
const predictions = { epsilon: "epsilon", v_prediction: "v", sample: "sample" };

/**
 * A family's name as people know it.
 * @param {Model["family"]} family
 */
export function familyTitle(family) {
  return families[family];
}

/**
 * A count as people say it: 23 M.
 * @param {number} value
 */
export function count(value) {
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
}

/**
 * @param {Model} model
 * @returns {[name: string, value: string][]}
 */
function facts(model) {
  const { defaults } = model;
  return [
    ["Family", families[model.family]],
    ["Does", model.tasks.map(task => tasks[task]).join(", ")],
    ["Predicts", predictions[model.prediction_type]],
    ["Size", `${defaults.width} × ${defaults.height} px, ${model.min_size} to ${model.max_size} by ${model.size_multiple}`],
    ["Defaults", `${defaults.steps} steps, guidance ${defaults.guidance_scale}, ${defaults.sampler}`],
    ["Weights", count(model.parameters)],
    ["Text width", `${model.cross_attention_dim} (adapters have to fit it)`],
  ];
}

/**
 * What the chosen model is, in a line.
 * @param {Model} model
 */
export function modelLine(model) {
  return [families[model.family], model.tasks.map(task => tasks[task]).join(", ")].join(" · ");
}

/**
 * All models with what is known of them, one of them to be chosen.
 * @param {readonly Model[]} models
 * @param {(name: string) => void} choose
 */
export function setUpModelList(models, choose) {
  const dialog = byId("models", HTMLDialogElement);
  const rows = models.map(model => {
    const use = make("button", { type: "button", className: "button", ariaLabel: `Use ${model.name}` }, "Use");
    use.addEventListener("click", () => {
      choose(model.name);
      dialog.close();
    });
    const list = make(
      "dl",
      { className: "recipe" },
      ...facts(model).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
    const text = make("div", {}, make("h3", {}, model.name), make("p", { className: "hint" }, model.description ?? ""));
    return make("li", { className: "entry" }, make("div", { className: "entry-head" }, text, use), list);
  });
  byId("model-list", HTMLElement).replaceChildren(...rows);
}
