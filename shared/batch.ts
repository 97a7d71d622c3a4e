import type { AdapterKind } from "./adapter.ts";
import { canonicalize, type Json, sha256Hex } from "./canonical.ts";
import type { AdapterUse, PictureRequest } from "./picture.ts";
import { samplerTraits } from "./samplers.ts";

/**
 * Which pictures may be computed as one batch: those of equal batch key. What every denoising step of a batch has in common stands in the key;
 * what each item may have for itself does not. Equal keys are a permission: a runner may still compute items apart, where prompts take
 * unequal numbers of chunks, say, or where an adapter turns out to patch weights.
 */

type Rule<T> = (value: T) => Json;
/** A rule for each field: one that is missing does not compile. */
type Rules<T> = { [K in keyof T]-?: Rule<T[K]> };

/** Has to be equal. */
const equal = <T extends Json>(value: T): Json => value;
/** Each item's own. */
const own = (): Json => null;
/** All items have it, or none. */
const presence = (value: unknown): Json => value !== null;

function fields<T extends object>(rules: Rules<T>): Rule<T> {
  return value =>
    Object.fromEntries((Object.keys(rules) as (keyof T & string)[]).map(name => [name, rules[name](value[name])] satisfies [string, Json]));
}

function nullable<T>(rule: Rule<T>): Rule<T | null> {
  return value => (value === null ? null : rule(value));
}

type Use<K extends AdapterKind> = Extract<AdapterUse, { kind: K }>;

/** What a control map's strength and picture have to do with the batch. */
const control = { weight: own, start: equal, end: equal, image: own, preprocess: own };

/** Null: items of one batch may have different sets of the kind. Strengths are applied per item, except where the kind has no such input. */
const adapterRules = {
  lora: null,
  "textual-inversion": null,
  hypernetwork: fields<Use<"hypernetwork">>({ kind: equal, adapter: equal, weight: equal, start: equal, end: equal }),
  "ip-adapter": fields<Use<"ip-adapter">>({
    kind: equal,
    adapter: equal,
    weight: own,
    start: equal,
    end: equal,
    images: images => images.length,
    embedding: presence,
    mask: presence,
    shortcut: own,
  }),
  controlnet: fields<Use<"controlnet">>({
    kind: equal,
    adapter: equal,
    ...control,
    guess_mode: equal,
    global_pool: equal,
    control_mode: equal,
  }),
  "t2i-adapter": fields<Use<"t2i-adapter">>({
    kind: equal,
    adapter: equal,
    ...control,
  }),
} as const satisfies { [K in AdapterKind]: Rule<Use<K>> | null };

function adapterKey<K extends AdapterKind>(use: Use<K>): Json[] {
  // The table's type ties each rule to its kind; a lookup by a union loses that tie.
  const rule = adapterRules[use.kind] as Rule<Use<K>> | null;
  return rule ? [rule(use)] : [];
}

const requestRules = fields<PictureRequest>({
  engine_version: equal,
  model: equal,
  prompt: own,
  prompt_2: own,
  negative_prompt: own,
  negative_prompt_2: own,
  prompt_syntax: own,
  clip_skip: own,
  width: equal,
  height: equal,
  steps: equal,
  // Whether a step has an unconditional half, not how strongly it counts.
  guidance_scale: scale => scale > 1,
  guidance_rescale: own,
  guidance_start: equal,
  guidance_end: equal,
  seed: own,
  noise_source: own,
  variation: own,
  sampler: equal,
  sampler_options: equal,
  source: nullable(fields<NonNullable<PictureRequest["source"]>>({ image: own, strength: equal })),
  mask: nullable(fields<NonNullable<PictureRequest["mask"]>>({ image: own, blur: own, padding_crop: presence, fill: own })),
  outpaint: equal,
  image_guidance_scale: nullable(scale => scale >= 1),
  upscale: equal,
  refiner: equal,
  micro_conditioning: own,
  tiled_vae: equal,
  adapters: uses => uses.flatMap(adapterKey),
  format: own,
});

/** SHA-256, 64 hexadecimal digits, of what a picture needs in common with those it may be computed with. */
export function batchKey(request: PictureRequest): Promise<string> {
  // A sampler whose steps' lengths follow from the latents has no steps in common with another picture.
  const alone = samplerTraits[request.sampler].calls === "varies";
  return sha256Hex(canonicalize(alone ? request : requestRules(request)));
}
