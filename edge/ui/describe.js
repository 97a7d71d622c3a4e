/** @typedef {import("./api.js").Generation} Generation */
/** @typedef {import("./api.js").Picture} Picture */
/** @typedef {import("./api.js").GenerationRequest} GenerationRequest */

import { samplers } from "./samplers.js";

/** @param {number} bytes */
export function fileSize(bytes) {
  if (bytes < 1024 ** 2) return `${(bytes / 1024).toFixed(1)} KB`;
  return bytes < 1024 ** 3 ? `${(bytes / 1024 ** 2).toFixed(1)} MB` : `${(bytes / 1024 ** 3).toFixed(2)} GB`;
}

/** @param {number} seconds */
export function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return seconds < 10 ? `${seconds.toFixed(1)} s` : `${whole} s`;
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
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

/** What a request need not say, since the API takes it so where it is absent. @type {Record<string, string>} */
const absent = {
  negative_prompt: '""',
  prompt_syntax: '"plain"',
  guidance_rescale: "0",
  guidance_interval: "[0,1]",
  noise_source: '"philox"',
  sampler_options: "{}",
  mask_blur: "0",
  mask_fill: '"original"',
  adapters: "[]",
  tiled_vae: "false",
};
/** What belongs to the whole generation, or to how it was asked for, rather than to one picture. */
const notOfPicture = ["num_images", "per_image", "output", "cache", "deadline"];

/**
 * The request that gives exactly this picture again.
 * @param {Generation} generation
 * @param {Pick<Picture, "seed" | "index">} picture
 * @returns {GenerationRequest}
 */
export function requestFor({ request }, { seed, index }) {
  const { model, ...own } = { ...request, ...request.per_image[index], seed };
  const kept = Object.entries({ model, ...own }).filter(
    ([name, value]) => value !== null && value !== undefined && !notOfPicture.includes(name) && JSON.stringify(value) !== absent[name],
  );
  return /** @type {GenerationRequest} */ ({
    ...Object.fromEntries(kept),
    ...(own.adapters.length > 0 && { adapters: own.adapters.map(plainSetting) }),
  });
}

/**
 * An adapter's settings without what its id says already.
 * @param {import("../../shared/generation.ts").AdapterSetting} setting
 */
function plainSetting({ version: _version, hash: _hash, kind: _kind, ...setting }) {
  const kept = Object.entries(setting).filter(
    ([name, value]) => value !== null && value !== false && !(name === "preprocess" && value === "none"),
  );
  return /** @type {import("../../shared/generation.ts").AdapterSetting} */ (Object.fromEntries(kept));
}

/**
 * How a picture was made, as names and values to show.
 * @param {Generation} generation
 * @param {Picture} picture
 * @returns {[name: string, value: string][]}
 */
export function recipe(generation, picture) {
  const request = { ...generation.request, ...generation.request.per_image[picture.index] };
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
    ...sourceRows(request),
    ...request.adapters.map(setting => /** @type {[string, string]} */ (["Adapter", adapterLine(setting)])),
    ...specialRows(request),
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

/** @typedef {Generation["request"]} Resolved */
/** @typedef {[name: string, value: string | false][]} Rows */

/**
 * @param {Resolved} request
 * @returns {Rows}
 */
function sourceRows({ image, strength, mask, mask_blur, padding_mask_crop, mask_fill, outpaint, image_guidance_scale }) {
  if (!image) return [];
  return [
    ["Started from", image],
    ["Strength", strength !== undefined && String(strength)],
    ["Image guidance", image_guidance_scale != null && String(image_guidance_scale)],
    ["Mask", mask ?? false],
    ["Mask blur", mask_blur > 0 && `${mask_blur} px`],
    ["Mask crop", padding_mask_crop !== null && `with ${padding_mask_crop} px around`],
    ["Masked starts as", mask_fill !== "original" && mask_fill],
    [
      "Outpainted",
      outpaint !== null &&
        Object.entries(outpaint)
          .map(([side, pixels]) => `${side} ${pixels}`)
          .join(", "),
    ],
  ];
}

/**
 * @param {Resolved} request
 * @returns {Rows}
 */
function specialRows(request) {
  const { prompt_2, negative_prompt_2, prompt_syntax, clip_skip, noise_source, guidance_interval, variation, upscale, refiner } = request;
  const [from, until] = guidance_interval;
  return [
    ["Second prompt", prompt_2 ?? false],
    ["Second negative", negative_prompt_2 ?? false],
    ["Prompt syntax", prompt_syntax !== "plain" && prompt_syntax],
    ["Clip skip", clip_skip > 0 && String(clip_skip)],
    ["Noise", noise_source !== "philox" && noise_source],
    ["Guidance from, until", (from > 0 || until < 1) && `${from}, ${until}`],
    ["Variation", variation !== null && `seed ${variation.seed}, strength ${variation.strength}`],
    ["Second pass", upscale !== null && `${upscale.mode}, × ${upscale.scale}, strength ${upscale.strength}, ${upscale.steps} steps`],
    ["Refiner", refiner !== null && `${refiner.model} from ${refiner.switch_at}`],
    ["Micro-conditioning", request.micro_conditioning !== null && words(request.micro_conditioning)],
    ["Decoded in tiles", request.tiled_vae && "yes"],
  ];
}

/** @param {import("../../shared/generation.ts").AdapterSetting} setting */
function adapterLine({ adapter, name, version, hash: _hash, kind, ...setting }) {
  return `${name ?? adapter}, ${kind ?? "adapter"}, version ${version ?? "?"}: ${words(plainSetting({ adapter, ...setting }), ["adapter"])}`;
}

/**
 * An object's values in words.
 * @param {object} values
 * @param {string[]} [without]
 */
function words(values, without = []) {
  return Object.entries(values)
    .filter(([name, value]) => value !== undefined && !without.includes(name))
    .map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(", ");
}
