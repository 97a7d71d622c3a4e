import { byId, make } from "./dom.js";
import { labelled } from "./fields.js";
import { optionControls, samplers } from "./samplers.js";

/** @typedef {import("./samplers.js").SamplerName} SamplerName */
/** @typedef {import("./samplers.js").SamplerOptionName} SamplerOptionName */
/** @typedef {import("../../shared/samplers.ts").SamplerOptions} SamplerOptions */

/**
 * Lets the visitor enter the options of one sampler, and no others. What stays empty is left to the model.
 * @param {SamplerName} sampler
 * @param {SamplerOptions} [values]
 */
export function showSamplerOptions(sampler, values = {}) {
  const { options, schedules } = samplers[sampler];
  const shown = options.filter(option => option !== "schedule" || schedules.length > 1);
  byId("sampler-options", HTMLElement).replaceChildren(...shown.map(option => optionField(option, schedules, values[option])));
}

/**
 * @param {SamplerOptionName} option
 * @param {readonly string[]} schedules
 * @param {unknown} value
 */
function optionField(option, schedules, value) {
  const control = optionControls[option];
  const text = value === undefined ? "" : String(value);
  if ("step" in control) {
    const input = make("input", {
      type: "number",
      inputMode: "decimal",
      step: String(control.step),
      placeholder: "model's own",
      value: text,
    });
    if (control.min !== undefined) input.min = String(control.min);
    if (control.max !== undefined) input.max = String(control.max);
    return labelled(`sampler_options.${option}`, control.label, input);
  }
  if ("list" in control) {
    const input = make("input", { inputMode: "decimal", pattern: "[0-9, ]*", placeholder: "model's own", value: text });
    return labelled(`sampler_options.${option}`, control.label, input);
  }
  const choices = option === "schedule" ? schedules : "flag" in control ? ["true", "false"] : control.choices;
  const titles = "flag" in control ? ["yes", "no"] : choices;
  const select = make("select", {}, new Option("model's own", ""), ...choices.map((choice, index) => new Option(titles[index], choice)));
  select.value = text;
  return labelled(`sampler_options.${option}`, control.label, select);
}

/**
 * The options as a request wants them; those left empty are absent.
 * @param {FormData} data
 * @returns {SamplerOptions}
 */
export function readSamplerOptions(data) {
  const entered = [...data].flatMap(([name, value]) => {
    const option = name.startsWith("sampler_options.") ? name.slice("sampler_options.".length) : null;
    return option === null || value === "" ? [] : [[option, optionValue(option, String(value))]];
  });
  return Object.fromEntries(entered);
}

/**
 * @param {string} option
 * @param {string} text
 */
function optionValue(option, text) {
  const control = optionControls[/** @type {SamplerOptionName} */ (option)];
  if ("step" in control) return Number(text);
  if ("list" in control) return text.split(",").map(Number);
  return "flag" in control ? text === "true" : text;
}
