import { batchKey } from "../shared/batch.ts";
import { canonicalize, sha256Hex } from "../shared/canonical.ts";
import { ENGINE_VERSION } from "../shared/engine.ts";
import { AtelierError, type FieldError } from "../shared/errors.ts";
import type { GenerationRequest, ResolvedRequest } from "../shared/generation.ts";
import type { ModelManifest } from "../shared/model.ts";
import { canonicalPictureRequest, hashPictureRequest, MAX_SEED, type PictureRequest, plainPicture } from "../shared/picture.ts";
import { samplerOptionIssues } from "../shared/samplers.ts";

import type { ExecutionInputs } from "./inputs.ts";

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

/**
 * Fills in what the request leaves open from the model's manifest, the seed included, and checks what only the model or the sampler can tell.
 * @throws AtelierError invalid_request with field, expected and got of everything that is wrong
 */
export async function resolveGeneration(request: GenerationRequest, model: ModelManifest): Promise<ResolvedRequest> {
  const filled = { ...model.defaults, ...request, seed: request.seed ?? 0 };
  const errors: FieldError[] = [
    ...sizeErrors("width", filled.width, model),
    ...sizeErrors("height", filled.height, model),
    ...samplerOptionIssues(filled.sampler, filled.sampler_options).map(({ option, expected }) => ({
      field: `sampler_options.${option}`,
      expected,
      got: JSON.stringify(filled.sampler_options[option] ?? null),
    })),
  ];
  if (errors.length > 0) throw new AtelierError("invalid_request", undefined, { errors });
  return request.seed === undefined ? { ...filled, seed: await absentSeed(filled, model) } : filled;
}

function sizeErrors(
  field: "width" | "height",
  got: number,
  { size_multiple: multiple, min_size: least, max_size: most, name }: ModelManifest,
): FieldError[] {
  if (got >= least && got <= most && got % multiple === 0) return [];
  return [{ field, expected: `a multiple of ${multiple} from ${least} to ${most}, as the model ${name} draws`, got: String(got) }];
}

/**
 * The seed of a request that names none: random, or for `reuse` and `only` derived from everything else that determines the pictures,
 * so that the repeat finds them. The number of pictures does not enter: n = 4 and then n = 1 meet at the first.
 */
async function absentSeed(request: ResolvedRequest, model: ModelManifest): Promise<number> {
  if (request.cache === "auto" || request.cache === "fresh") return crypto.getRandomValues(new Uint32Array(1))[0]!;
  const { seed: _open, ...rest } = pictureRequest(request, model, 0);
  return Number.parseInt((await sha256Hex(canonicalize(rest))).slice(0, 8), 16);
}

/** The pictures of a generation: picture i has the seed + i, modulo 2^32. */
export function planPictures(request: ResolvedRequest, model: ModelManifest): Promise<PlannedPicture[]> {
  return Promise.all(
    Array.from({ length: request.num_images }, async (_, index) => {
      const seed = (request.seed + index) % (MAX_SEED + 1);
      const picture = pictureRequest(request, model, seed);
      const params = canonicalPictureRequest(picture);
      const [hash, key] = await Promise.all([hashPictureRequest(params), batchKey(picture)]);
      return { seed, params, hash, batchKey: key, inputs: { files: [], adapters: [] }, parts: [] };
    }),
  );
}

function pictureRequest(request: ResolvedRequest, model: ModelManifest, seed: number): PictureRequest {
  return {
    ...plainPicture,
    engine_version: ENGINE_VERSION,
    model: model.hash,
    prompt: request.prompt,
    negative_prompt: request.negative_prompt,
    clip_skip: request.clip_skip,
    width: request.width,
    height: request.height,
    steps: request.steps,
    guidance_scale: request.guidance_scale,
    guidance_rescale: request.guidance_rescale,
    seed,
    sampler: request.sampler,
    sampler_options: request.sampler_options,
    format: request.format,
  };
}
