import { batchKey } from "../shared/batch.ts";
import { canonicalize, sha256Hex } from "../shared/canonical.ts";
import { ENGINE_VERSION } from "../shared/engine.ts";
import { AtelierError, type FieldError } from "../shared/errors.ts";
import type { GenerationRequest, PictureOverrides, ResolvedRequest } from "../shared/generation.ts";
import type { ModelManifest } from "../shared/model.ts";
import {
  adaptersOf,
  canonicalPictureRequest,
  hashPictureRequest,
  inputsOf,
  MAX_SEED,
  type PictureRequest,
  plainPicture,
} from "../shared/picture.ts";
import { resolveSamplerName, samplerNames, samplerOptionIssues } from "../shared/samplers.ts";
import { type AdapterContext, useAdapters } from "./adapter-uses.ts";
import { defaultSize, passErrors, sizeErrors } from "./generation-size.ts";
import { microConditioning, promptsOf } from "./generation-text.ts";
import type { ExecutionInputs } from "./inputs.ts";
import { type Item, sourceOf } from "./picture-source.ts";

/** One picture of a generation: its canonical request and that one's hash. */
export interface PlannedPicture {
  readonly seed: number;
  readonly params: string;
  readonly hash: string;
  readonly batchKey: string;
  readonly inputs: ExecutionInputs;
  /** Content hashes of its adapters and its refiner. */
  readonly parts: readonly string[];
}

/** What a request is resolved against. */
export interface GenerationContext extends AdapterContext {
  readonly refiner: ModelManifest | undefined;
}

/** A request with nothing left open, and its pictures. */
export interface PlannedGeneration {
  readonly request: ResolvedRequest;
  readonly pictures: readonly PlannedPicture[];
}

/**
 * Fills in what the request leaves open, the seed included, checks what only model, sampler and adapters can tell, and plans its pictures:
 * picture i has the seed + i, modulo 2^32, unless `per_image` says otherwise. Requests that mean the same give the same pictures' hashes.
 * @throws AtelierError invalid_request with field, expected and got of everything that is wrong
 */
export async function planGeneration(request: GenerationRequest, context: GenerationContext): Promise<PlannedGeneration> {
  const filled = fill(request, context);
  const base = planItem(filled, undefined, context);
  const items = Array.from({ length: filled.num_images }, (_, i) =>
    filled.per_image[i] ? planItem({ ...filled, ...filled.per_image[i] }, { index: i, overrides: filled.per_image[i] }, context) : base,
  );
  // What every picture says otherwise need not be right for the generation as a whole.
  const errors = [...requestErrors(request, filled, context), ...items.flatMap(item => item.errors)];
  const distinct = [...new Map(errors.map(error => [error.field, error])).values()];
  if (distinct.length > 0) throw new AtelierError("invalid_request", undefined, { errors: distinct });
  const seed = request.seed ?? (await absentSeed(filled, base.picture));
  const seedOf = (index: number) => filled.per_image[index]?.seed ?? (seed + index) % (MAX_SEED + 1);
  return {
    request: {
      ...filled,
      ...base.shown,
      seed,
      per_image: filled.per_image.map((overrides, i) => ({
        ...overrides,
        ...(overrides.adapters && { adapters: items[i]!.shown.adapters }),
      })),
    },
    pictures: await Promise.all(items.map(({ picture }, i) => planPicture({ ...picture, seed: seedOf(i) }, context))),
  };
}

/** A request whose open fields have the model's defaults. Its seed is 0 until it is known. */
function fill(request: GenerationRequest, { model, inputs }: GenerationContext): ResolvedRequest {
  const { defaults } = model;
  const named = request.sampler === undefined ? null : resolveSamplerName(request.sampler);
  const sampler = named?.sampler ?? defaults.sampler;
  const size = defaultSize(request, model, inputs.get(request.image ?? ""));
  const steps = request.steps ?? defaults.steps;
  return {
    ...request,
    ...{ sampler, steps },
    width: request.width ?? size.width,
    height: request.height ?? size.height,
    guidance_scale: request.guidance_scale ?? defaults.guidance_scale,
    guidance_rescale: request.guidance_rescale ?? defaults.guidance_rescale,
    clip_skip: request.clip_skip ?? defaults.clip_skip,
    // The model's options were chosen for the model's sampler.
    sampler_options: { ...(sampler === defaults.sampler && defaults.sampler_options), ...named?.options, ...request.sampler_options },
    upscale: request.upscale && { ...request.upscale, steps: request.upscale.steps ?? steps },
    num_images: request.num_images ?? Math.max(1, request.per_image.length),
    seed: request.seed ?? 0,
  };
}

/** What is wrong with the request as a whole. */
function requestErrors(request: GenerationRequest, filled: ResolvedRequest, { model, refiner }: GenerationContext): FieldError[] {
  const errors = [
    ...sizeErrors("width", filled.width, model),
    ...sizeErrors("height", filled.height, model),
    ...passErrors(filled, model),
    ...samplerOptionIssues(filled.sampler, filled.sampler_options).map(({ option, expected }) => ({
      field: `sampler_options.${option}`,
      expected,
      got: JSON.stringify(filled.sampler_options[option] ?? null),
    })),
  ];
  if (request.sampler !== undefined && !resolveSamplerName(request.sampler)) {
    const expected = `one of ${samplerNames.join(", ")}, or its name in diffusers, A1111 or ComfyUI`;
    errors.push({ field: "sampler", expected, got: JSON.stringify(request.sampler) });
  }
  if (request.per_image.length > 0 && request.per_image.length !== filled.num_images)
    errors.push({
      field: "per_image",
      expected: `${filled.num_images} items, as num_images says`,
      got: `${request.per_image.length} items`,
    });
  if (refiner && (model.family !== "sdxl" || !refiner.family.startsWith("sdxl") || refiner.pool !== model.pool)) {
    const expected = `an SDXL model of the same pool after an SDXL model; ${model.name} is ${model.family}, ${refiner.name} is ${refiner.family}`;
    errors.push({ field: "refiner.model", expected, got: JSON.stringify(refiner.name) });
  }
  return errors;
}

interface PlannedItem {
  readonly picture: PictureRequest;
  /** As answers show it. */
  readonly shown: Pick<ResolvedRequest, "prompt_2" | "negative_prompt" | "negative_prompt_2" | "adapters"> & Partial<ResolvedRequest>;
  readonly errors: readonly FieldError[];
}

/** One picture's request. `own` says which of its fields `per_image` has given, for the errors. */
function planItem(item: Item, own: { index: number; overrides: PictureOverrides } | undefined, context: GenerationContext): PlannedItem {
  const { model, refiner, inputs } = context;
  const at = (field: string) => (own && Object.hasOwn(own.overrides, field.split(".")[0]!) ? `per_image.${own.index}.${field}` : field);
  const errors: FieldError[] = [];
  const wrong = (field: string, expected: string, got: unknown) =>
    void errors.push({ field: at(field), expected, got: got === undefined ? "nothing" : JSON.stringify(got) });
  const prompts = promptsOf(item, model, wrong);
  const source = sourceOf(item, model, inputs, wrong);
  const adapters = useAdapters(item.adapters, at("adapters"), context);
  if (item.clip_skip > model.max_clip_skip)
    wrong("clip_skip", `at most ${model.max_clip_skip}, as the model ${model.name} allows`, item.clip_skip);
  const [guidance_start, guidance_end] = item.guidance_interval;
  const picture: PictureRequest = {
    ...plainPicture,
    ...prompts,
    ...source,
    engine_version: ENGINE_VERSION,
    model: model.hash,
    ...{ guidance_start, guidance_end },
    prompt_syntax: item.prompt_syntax,
    clip_skip: item.clip_skip,
    width: item.width,
    height: item.height,
    steps: item.steps,
    guidance_scale: item.guidance_scale,
    guidance_rescale: item.guidance_rescale,
    seed: item.seed,
    noise_source: item.noise_source,
    variation: item.variation && item.variation.strength > 0 ? item.variation : null,
    sampler: item.sampler,
    sampler_options: item.sampler_options,
    upscale: item.upscale && { ...item.upscale, steps: item.upscale.steps ?? item.steps },
    refiner: refiner && item.refiner ? { model: refiner.hash, switch_at: item.refiner.switch_at } : null,
    micro_conditioning: microConditioning(item, model, wrong),
    tiled_vae: item.tiled_vae,
    adapters: adapters.uses,
    format: item.format,
  };
  // As they were asked for, not as the picture has them: what a picture of its own prompt takes from here may be what this one leaves out.
  const { prompt_2 = null, negative_prompt = picture.negative_prompt, negative_prompt_2 = null } = item;
  const strength = source.source && { strength: source.source.strength };
  const { image_guidance_scale } = source;
  return {
    picture,
    shown: { prompt_2, negative_prompt, negative_prompt_2, image_guidance_scale, adapters: adapters.settings, ...strength },
    errors: [...errors, ...adapters.errors],
  };
}

/**
 * The seed of a request that names none: random, or for `reuse` and `only` derived from everything else that determines the pictures,
 * so that the repeat finds them. The number of pictures does not enter: n = 4 and then n = 1 meet at the first.
 */
async function absentSeed(request: ResolvedRequest, base: PictureRequest): Promise<number> {
  if (request.cache === "auto" || request.cache === "fresh") return crypto.getRandomValues(new Uint32Array(1))[0]!;
  const { seed: _open, ...rest } = base;
  return Number.parseInt((await sha256Hex(canonicalize(rest))).slice(0, 8), 16);
}

async function planPicture(picture: PictureRequest, context: GenerationContext): Promise<PlannedPicture> {
  const params = canonicalPictureRequest(picture);
  const [hash, key] = await Promise.all([hashPictureRequest(params), batchKey(picture)]);
  const adapters = adaptersOf(picture);
  const parts = [...adapters, ...(picture.refiner ? [picture.refiner.model] : [])];
  return { seed: picture.seed, params, hash, batchKey: key, inputs: executionInputs(picture, adapters, context), parts };
}

/** What the runner of a picture may fetch, each file once. */
function executionInputs(picture: PictureRequest, hashes: readonly string[], { inputs, adapters }: GenerationContext): ExecutionInputs {
  const byHash = new Map([...inputs.values()].map(file => [file.sha256, file]));
  const used = hashes.map(hash => [...adapters.values()].find(({ manifest }) => manifest.hash === hash)!);
  const files = [
    ...inputsOf(picture).flatMap(sha256 => {
      const file = byHash.get(sha256);
      return file ? [{ sha256, bytes: file.bytes, key: file.key }] : [];
    }),
    ...used.flatMap(adapter => adapter.files),
  ];
  return {
    files: [...new Map(files.map(file => [file.sha256, file])).values()],
    adapters: used.map(({ manifest }) => ({ hash: manifest.hash, files: manifest.files })),
  };
}
