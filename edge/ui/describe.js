/** @typedef {import("./api.js").Generation} Generation */
/** @typedef {import("./api.js").Picture} Picture */
/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */

import { samplers } from "./samplers.js";

/** @param {number} bytes */
export function fileSize(bytes) {
  return bytes < 1024 ** 2 ? `${(bytes / 1024).toFixed(1)} KB` : `${(bytes / 1024 ** 2).toFixed(1)} MB`;
}

/** @param {string} date ISO 8601 */
export function when(date) {
  return new Date(date).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** @param {string} date ISO 8601 */
export function clock(date) {
  return new Date(date).toLocaleTimeString(undefined, { timeStyle: "short" });
}

/** @param {Picture} picture */
export function pictureSize({ width, height }) {
  return `${width} × ${height}`;
}

/** @param {Picture} picture */
export function fileName({ seed, media_type }) {
  return `atelier-${seed}.${media_type.split("/")[1]}`;
}

/**
 * The request that gives exactly this picture again.
 * @param {Generation} generation
 * @param {Picture} picture
 * @returns {GenerationRequest}
 */
export function requestFor({ request }, { seed }) {
  const { prompt, negative_prompt, model, width, height, steps, guidance_scale, guidance_rescale, sampler, sampler_options, format } =
    request;
  return {
    model,
    prompt,
    ...(negative_prompt !== "" && { negative_prompt }),
    width,
    height,
    steps,
    guidance_scale,
    ...(guidance_rescale !== 0 && { guidance_rescale }),
    sampler,
    ...(Object.keys(sampler_options).length > 0 && { sampler_options }),
    seed,
    format,
  };
}

/**
 * How a picture was made, as names and values to show.
 * @param {Generation} generation
 * @param {Picture} picture
 * @returns {[name: string, value: string][]}
 */
export function recipe(generation, picture) {
  const { request } = generation;
  /** @type {[string, string | false][]} */
  const rows = [
    ["Negative prompt", request.negative_prompt || false],
    ["Seed", String(picture.seed)],
    ["Size", `${pictureSize(picture)} px`],
    ["Steps", String(request.steps)],
    ["Guidance", String(request.guidance_scale)],
    ["Guidance rescale", request.guidance_rescale > 0 && String(request.guidance_rescale)],
    ["Sampler", samplers[request.sampler].title],
    ...Object.entries(request.sampler_options).map(([option, value]) => /** @type {[string, string]} */ ([option, String(value)])),
    ["Model", request.model],
    ["Model hash", generation.model_hash],
    ["File", picture.bytes !== null && `${picture.media_type}, ${fileSize(picture.bytes)}`],
    ["SHA-256", picture.sha256 ?? false],
    ["From cache", picture.cached ? "yes" : "no"],
    ["Made", when(generation.created_at)],
    ["Generation", generation.id],
  ];
  return rows.flatMap(([name, value]) => (value === false ? [] : [/** @type {[string, string]} */ ([name, value])]));
}
