import { z } from "zod";
import { canonicalize, sha256Hex } from "./canonical.ts";
import { ENGINE_VERSION } from "./engine.ts";
import { contentHashSchema, sha256Schema } from "./names.ts";
import { samplerNameSchema, samplerOptionsSchema } from "./samplers.ts";

export const pictureFormats = ["png", "webp", "jpeg"] as const;
export type PictureFormat = (typeof pictureFormats)[number];
/** Media type of each format. */
export const mediaTypes = { png: "image/png", webp: "image/webp", jpeg: "image/jpeg" } as const satisfies Record<PictureFormat, string>;

export const MAX_SEED = 2 ** 32 - 1;
export const seedSchema = z.int().min(0).max(MAX_SEED);

/** `philox`: as torch on CUDA (and A1111's "GPU"); `mt19937`: as torch on the CPU (and A1111's "CPU", ComfyUI). */
export const noiseSources = ["philox", "mt19937"] as const;
export type NoiseSource = (typeof noiseSources)[number];

/** `plain`: the text as it stands, as diffusers reads it; `a1111`: (word:1.2), [word], BREAK, [a|b], [a:b:0.5]. */
export const promptSyntaxes = ["plain", "a1111"] as const;
export type PromptSyntax = (typeof promptSyntaxes)[number];

/** How a control map is made of the picture that is given; `none`: it is a map already. */
export const controlPreprocessors = ["none", "canny", "scribble", "tile", "blur", "mask"] as const;
export type ControlPreprocessor = (typeof controlPreprocessors)[number];

/** A share of the run, from 0 (before the first step) to 1 (after the last). */
const share = z.number().min(0).max(1);
/** When an adapter works: from the step at `start` until before the step at `end`, as shares of the steps. */
const span = { weight: z.number().min(-10).max(10), start: share, end: share };
/** An input picture by the SHA-256 of its file. */
const picture = sha256Schema;
const control = { ...span, image: picture, preprocess: z.enum(controlPreprocessors) };

/** One adapter of a picture, by content hash, with all its settings. */
export const adapterUseSchema = z.discriminatedUnion("kind", [
  z.strictObject({
    kind: z.literal("lora"),
    adapter: contentHashSchema,
    ...span,
    text_encoder_weight: z.number().min(-10).max(10).describe("for the parts in the text encoders, which work in every step"),
    dora: z
      .enum(["peft", "interpolate"])
      .nullable()
      .describe("how a DoRA is read at a weight other than 1; null: as its file's origin implies"),
  }),
  z.strictObject({ kind: z.literal("textual-inversion"), adapter: contentHashSchema, token: z.string().min(1).max(100) }),
  z.strictObject({ kind: z.literal("hypernetwork"), adapter: contentHashSchema, ...span }),
  z.strictObject({
    kind: z.literal("ip-adapter"),
    adapter: contentHashSchema,
    ...span,
    images: z.array(z.strictObject({ image: picture, weight: z.number() })).max(16),
    embedding: sha256Schema.nullable().describe("a safetensors file with the face embedding of a FaceID adapter"),
    mask: picture.nullable().describe("white where it works"),
    shortcut: z.boolean().describe("of FaceID-plus: its second version, where the picture is added to the face's own tokens"),
  }),
  z.strictObject({
    kind: z.literal("controlnet"),
    adapter: contentHashSchema,
    ...control,
    guess_mode: z.boolean(),
    global_pool: z.boolean(),
    control_mode: z.int().min(0).max(31).nullable().describe("which control of a union ControlNet"),
  }),
  z.strictObject({ kind: z.literal("t2i-adapter"), adapter: contentHashSchema, ...control }),
]);
export type AdapterUse = z.infer<typeof adapterUseSchema>;

const size = z.tuple([z.int().min(0), z.int().min(0)]).describe("[height, width]");

/**
 * Everything that determines one picture, with every default filled in and every name resolved to a content hash.
 * Its canonical form is the cache key and what a runner computes; it has no tenant, job or time in it.
 */
export const pictureRequestSchema = z.strictObject({
  engine_version: z.literal(ENGINE_VERSION),
  model: contentHashSchema,
  prompt: z.string(),
  prompt_2: z.string().nullable().describe("for the second text encoder; null: the same"),
  negative_prompt: z.string().nullable().describe("null: none, for which SDXL takes zeros rather than the empty text"),
  negative_prompt_2: z.string().nullable(),
  prompt_syntax: z.enum(promptSyntaxes),
  clip_skip: z.int().min(0).describe("layers left out at the text encoders' end, as diffusers counts: A1111's value less one"),
  width: z.int().positive(),
  height: z.int().positive(),
  steps: z.int().positive(),
  guidance_scale: z.number(),
  guidance_rescale: z.number(),
  guidance_start: share.describe("guidance works from this share of the steps"),
  guidance_end: share,
  seed: seedSchema,
  noise_source: z.enum(noiseSources),
  variation: z.strictObject({ seed: seedSchema, strength: share }).nullable().describe("start noise between two seeds, spherically"),
  sampler: samplerNameSchema,
  sampler_options: samplerOptionsSchema,
  source: z
    .strictObject({ image: picture, strength: share })
    .nullable()
    .describe("picture to start from: image to image, or with `mask` inpainting, or what an edit model edits (strength 1)"),
  mask: z
    .strictObject({
      image: picture.describe("white where to repaint"),
      blur: z.number().min(0).max(256).describe("radius in pixels"),
      padding_crop: z
        .int()
        .min(0)
        .nullable()
        .describe("repaint a crop around the mask with that much padding, at full size; null: the whole"),
      fill: z.enum(["original", "noise", "blur"]).describe("what the masked area starts as"),
    })
    .nullable(),
  outpaint: z
    .strictObject({ left: z.int().min(0), right: z.int().min(0), top: z.int().min(0), bottom: z.int().min(0) })
    .nullable()
    .describe("pixels added around `source`; width and height are those of the result"),
  image_guidance_scale: z.number().nullable().describe("of an edit model: how closely it keeps to the source"),
  upscale: z
    .strictObject({
      scale: z.number().min(1).max(4),
      mode: z.enum(["latent", "pixel"]).describe("where the first pass is enlarged"),
      strength: share,
      steps: z.int().positive(),
    })
    .nullable()
    .describe("a second pass over the enlarged result of the first; width and height are the first pass's"),
  refiner: z.strictObject({ model: contentHashSchema, switch_at: share }).nullable().describe("takes over for the rest of the steps"),
  micro_conditioning: z
    .strictObject({
      original_size: size,
      crops_coords_top_left: size,
      target_size: size,
      negative_original_size: size,
      negative_crops_coords_top_left: size,
      negative_target_size: size,
      aesthetic_score: z.number(),
      negative_aesthetic_score: z.number(),
    })
    .nullable()
    .describe("SDXL only"),
  tiled_vae: z.boolean(),
  adapters: z.array(adapterUseSchema).max(32),
  format: z.enum(pictureFormats),
});
export type PictureRequest = z.infer<typeof pictureRequestSchema>;

/** What a request says that asks for nothing special. */
export const plainPicture = {
  prompt_2: null,
  negative_prompt: "",
  negative_prompt_2: null,
  prompt_syntax: "plain",
  clip_skip: 0,
  guidance_rescale: 0,
  guidance_start: 0,
  guidance_end: 1,
  noise_source: "philox",
  variation: null,
  sampler_options: {},
  source: null,
  mask: null,
  outpaint: null,
  image_guidance_scale: null,
  upscale: null,
  refiner: null,
  micro_conditioning: null,
  tiled_vae: false,
  adapters: [],
  format: "png",
} satisfies Partial<PictureRequest>;

/** Canonical text of a picture request (RFC 8785). It is stored, hashed, sent to the runner and hashed there again. */
export function canonicalPictureRequest(request: PictureRequest): string {
  return canonicalize(request);
}

/** SHA-256 of a canonical picture request, 64 hexadecimal digits: the cache key within a tenant. */
export function hashPictureRequest(canonical: string): Promise<string> {
  return sha256Hex(canonical);
}

/** The SHA-256 of every input file that a picture is made from (not of models and adapters), each once. */
export function inputsOf({ source, mask, adapters }: PictureRequest): string[] {
  const inputs = [source?.image, mask?.image, ...adapters.flatMap(adapterInputs)];
  return [...new Set(inputs.filter(input => input !== undefined && input !== null))];
}

function adapterInputs(use: AdapterUse): (string | null)[] {
  if (use.kind === "ip-adapter") return [...use.images.map(({ image }) => image), use.embedding, use.mask];
  return use.kind === "controlnet" || use.kind === "t2i-adapter" ? [use.image] : [];
}

/** The content hashes of a picture's adapters, each once. */
export function adaptersOf({ adapters }: PictureRequest): string[] {
  return [...new Set(adapters.map(({ adapter }) => adapter))];
}
