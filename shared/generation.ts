import { z } from "zod";
import { type AdapterKind, adapterKindSchema } from "./adapter.ts";
import { contentHashSchema, idPrefixes, modelNameSchema } from "./names.ts";
import { controlPreprocessors, noiseSources, pictureFormats, promptSyntaxes, seedSchema } from "./picture.ts";
import { samplerNameSchema, samplerNames, samplerOptionsSchema } from "./samplers.ts";

export const MAX_PICTURES = 8;
export const MAX_PROMPT_CHARACTERS = 8192;
export const MAX_STEPS = 150;
export const MAX_ADAPTERS = 32;
/** Seconds that a job may take, from acceptance to its end, where the request doesn't say. */
export const DEFAULT_DEADLINE_S = 600;
export const MAX_DEADLINE_S = 3600;

/** `auto` looks up and stores; `reuse` also derives an absent seed from the request; `fresh` computes anew; `only` never computes. */
export const cacheModes = ["auto", "reuse", "fresh", "only"] as const;
export type CacheMode = (typeof cacheModes)[number];

/** JSON can spell half of a surrogate pair, which no hash, token or file can hold. */
const text = z
  .string()
  .max(MAX_PROMPT_CHARACTERS)
  .refine(value => value.isWellFormed(), "expected Unicode text, got half of a surrogate pair");

const inputPattern = new RegExp(`^(${idPrefixes.upload}|${idPrefixes.picture})_[0-7][0-9A-HJKMNP-TV-Z]{25}$`);
const dataUrlPattern = /^data:(image\/(png|webp|jpeg)|application\/x-safetensors);base64,/;
/** An input file: one that was uploaded, a picture of an earlier generation, or the file itself. */
export const inputReferenceSchema = z
  .string()
  .refine(
    value => inputPattern.test(value) || dataUrlPattern.test(value),
    "expected an id upl_… of POST /v1/uploads, the id pic_… of a picture, or data:image/png;base64,… (also webp and jpeg); URLs of other servers are not fetched",
  )
  .meta({ description: "upl_…, pic_… or data:image/…;base64,…" });

const share = z.number().min(0).max(1);
const weight = z.number().min(-10).max(10);

/** An adapter in a request, with the settings of its kind. */
export const adapterSettingSchema = z
  .strictObject({
    adapter: z.string().min(1).max(100).describe("name, id adp_… or content hash sha256:…"),
    weight: weight.optional().describe("1 where absent"),
    start: share.optional().describe("share of the steps from which it works; 0 where absent"),
    end: share.optional().describe("share of the steps until which it works; 1 where absent"),
    text_encoder_weight: weight.optional().describe("LoRA: for its parts in the text encoders; the weight where absent"),
    dora: z
      .enum(["peft", "interpolate"])
      .nullable()
      .optional()
      .describe("LoRA: how a DoRA is read at a weight other than 1; as its file's origin implies where absent"),
    token: z.string().min(1).max(100).optional().describe("textual inversion: the word for it in the prompt"),
    image: inputReferenceSchema
      .optional()
      .describe("ControlNet, T2I-Adapter: the control map or the picture to make it of; IP-Adapter: one reference"),
    images: z
      .array(z.strictObject({ image: inputReferenceSchema, weight: weight.default(1) }))
      .min(1)
      .max(16)
      .optional()
      .describe("IP-Adapter: several references, each with its share"),
    embedding: inputReferenceSchema.nullable().optional().describe("IP-Adapter FaceID: a safetensors file with the face's embedding"),
    mask: inputReferenceSchema.nullable().optional().describe("IP-Adapter: white where it works"),
    shortcut: z
      .boolean()
      .optional()
      .describe("IP-Adapter FaceID-plus: true for its second version, whose file looks like the first's; false where absent"),
    preprocess: z.enum(controlPreprocessors).optional().describe("how the control map is made of the picture; none: it is a map already"),
    guess_mode: z.boolean().optional().describe("ControlNet: works without a prompt"),
    global_pool: z.boolean().optional().describe("ControlNet: its residuals are averaged over the picture, as the shuffle model needs"),
    control_mode: z.int().min(0).max(31).nullable().optional().describe("ControlNet union: which control"),
    // What an answer says of the adapter; in a request each of them has to hold.
    name: z.string().optional().describe("in answers; in a request it has to hold"),
    version: z.int().optional().describe("in answers; in a request it has to hold"),
    hash: contentHashSchema.optional().describe("in answers; in a request it has to hold"),
    kind: adapterKindSchema.optional().describe("in answers; in a request it has to hold"),
  })
  .meta({ id: "AdapterSetting" });
export type AdapterSetting = z.infer<typeof adapterSettingSchema>;

/** Which settings each kind has besides `adapter`. */
export const adapterSettings = {
  lora: ["weight", "start", "end", "text_encoder_weight", "dora"],
  "textual-inversion": ["token"],
  hypernetwork: ["weight", "start", "end"],
  "ip-adapter": ["weight", "start", "end", "image", "images", "embedding", "mask", "shortcut"],
  controlnet: ["weight", "start", "end", "image", "preprocess", "guess_mode", "global_pool", "control_mode"],
  "t2i-adapter": ["weight", "start", "end", "image", "preprocess"],
} as const satisfies Record<AdapterKind, readonly (keyof AdapterSetting)[]>;

const size = z.tuple([z.int().min(0), z.int().min(0)]).describe("[height, width]");
const variation = z
  .strictObject({ seed: seedSchema, strength: share })
  .nullable()
  .describe("start noise between two seeds: 0 is the seed's own, 1 that of variation.seed");
const adapterList = z.array(adapterSettingSchema).max(MAX_ADAPTERS);

/** What each picture of a generation may have for itself. */
const perPicture = {
  prompt: text.min(1).describe("what to draw"),
  prompt_2: text.nullable().optional().describe("for the second text encoder of SDXL; the same where absent"),
  negative_prompt: text
    .nullable()
    .optional()
    .describe("what to steer away from; where absent nothing, for which SDXL takes zeros and others the empty text"),
  negative_prompt_2: text.nullable().optional().describe("for the second text encoder of SDXL; the same where absent"),
  prompt_syntax: z
    .enum(promptSyntaxes)
    .default("plain")
    .describe("plain: the text as it stands, as diffusers reads it; a1111: (word:1.2), [word], BREAK, [a|b], [a:b:0.5], <lora:name:0.8>"),
  clip_skip: z
    .int()
    .min(0)
    .max(31)
    .optional()
    .describe("layers left out at the text encoders' end, as diffusers counts: A1111's value less one"),
  guidance_scale: z.number().min(0).max(50).optional().describe("classifier-free guidance; 1 or less turns it off"),
  guidance_rescale: share
    .optional()
    .describe("share of the guided prediction that is rescaled to the plain one's deviation (arXiv 2305.08891)"),
  guidance_interval: z
    .tuple([share, share])
    .refine(([start, end]) => start < end, "expected a start before the end")
    .default([0, 1])
    .describe("[start, end]: shares of the steps between which guidance works (arXiv 2404.07724)"),
  noise_source: z
    .enum(noiseSources)
    .default("philox")
    .describe("philox: as torch on CUDA and A1111's GPU noise; mt19937: as torch on the CPU, A1111's CPU noise and ComfyUI"),
  variation: variation.default(null),
  image: inputReferenceSchema.nullable().default(null).describe("picture to start from, or to edit: upl_…, pic_… or data:image/…;base64,…"),
  strength: share
    .optional()
    .describe("how far `image` is changed: 1 keeps nothing; 0.8 where absent, 1 with a mask, outpainting or an edit model"),
  image_guidance_scale: z
    .number()
    .min(0)
    .max(50)
    .nullable()
    .optional()
    .describe("of an edit model: how closely it keeps to `image`; 1.5 where absent"),
  adapters: adapterList.default([]).describe("any number of kinds, each with its own weight and span of the steps"),
};

/** Overrides for one picture. The rest is the generation's. */
const pictureOverridesSchema = z
  .strictObject({
    seed: seedSchema.optional(),
    prompt: perPicture.prompt.optional(),
    prompt_2: perPicture.prompt_2,
    negative_prompt: perPicture.negative_prompt,
    negative_prompt_2: perPicture.negative_prompt_2,
    prompt_syntax: perPicture.prompt_syntax.removeDefault().optional(),
    clip_skip: perPicture.clip_skip,
    guidance_scale: perPicture.guidance_scale,
    guidance_rescale: perPicture.guidance_rescale,
    guidance_interval: perPicture.guidance_interval.removeDefault().optional(),
    noise_source: perPicture.noise_source.removeDefault().optional(),
    variation: variation.optional(),
    image: inputReferenceSchema.optional(),
    strength: perPicture.strength,
    image_guidance_scale: perPicture.image_guidance_scale,
    adapters: adapterList.optional(),
  })
  .meta({ id: "PictureOverrides" });

const padding = z.int().min(0).max(4096);
const microConditioningSchema = z
  .strictObject({
    original_size: size.optional(),
    crops_coords_top_left: size.optional(),
    target_size: size.optional(),
    negative_original_size: size.optional(),
    negative_crops_coords_top_left: size.optional(),
    negative_target_size: size.optional(),
    aesthetic_score: z.number().optional().describe("of the refiner; 6 where absent"),
    negative_aesthetic_score: z.number().optional().describe("of the refiner; 2.5 where absent"),
  })
  .meta({ id: "MicroConditioning" });

/** Body of `POST /v1/generations`. What is absent is filled in from the model's manifest. */
export const generationRequestSchema = z
  .strictObject({
    ...perPicture,
    model: modelNameSchema.default("pocket"),
    width: z
      .int()
      .positive()
      .optional()
      .describe("pixels; a multiple of the model's size_multiple. With `image`, its shape where both are absent"),
    height: z.int().positive().optional().describe("pixels; a multiple of the model's size_multiple"),
    steps: z.int().min(1).max(MAX_STEPS).optional().describe("sampling steps"),
    seed: seedSchema.optional().describe("picture i gets seed + i, modulo 2^32"),
    sampler: z
      .string()
      .max(100)
      .optional()
      .describe(`${samplerNames.join(", ")}; also the names of diffusers' classes, A1111 and ComfyUI, such as "DPM++ 2M Karras"`),
    sampler_options: samplerOptionsSchema.default({}).describe("flags of the sampler; they go before what its name or the model says"),
    mask: inputReferenceSchema.nullable().default(null).describe("inpainting: white where `image` is repainted"),
    mask_blur: z.number().min(0).max(256).default(0).describe("radius in pixels"),
    padding_mask_crop: padding.nullable().default(null).describe("repaint a crop around the mask with that much padding, at full size"),
    mask_fill: z.enum(["original", "noise", "blur"]).default("original").describe("what the masked area starts as"),
    outpaint: z
      .strictObject({ left: padding.default(0), right: padding.default(0), top: padding.default(0), bottom: padding.default(0) })
      .nullable()
      .default(null)
      .describe("pixels drawn around `image`; width and height are those of the result"),
    upscale: z
      .strictObject({
        scale: z.number().min(1).max(4).default(2),
        mode: z.enum(["latent", "pixel"]).default("latent").describe("where the first pass is enlarged"),
        strength: share.default(0.7),
        steps: z.int().min(1).max(MAX_STEPS).optional().describe("of the second pass; those of the first where absent"),
      })
      .nullable()
      .default(null)
      .describe("a second pass over the enlarged result of the first; width and height are the first pass's"),
    refiner: z
      .strictObject({ model: modelNameSchema, switch_at: share.default(0.8) })
      .nullable()
      .default(null)
      .describe("a model that takes over for the rest of the steps"),
    micro_conditioning: microConditioningSchema.nullable().default(null).describe("SDXL only; sizes are [height, width]"),
    tiled_vae: z.boolean().default(false).describe("decode in tiles, which takes less memory"),
    num_images: z.int().min(1).max(MAX_PICTURES).optional().describe("1 where absent, or the length of `per_image`"),
    per_image: z
      .array(pictureOverridesSchema)
      .max(MAX_PICTURES)
      .default([])
      .describe("overrides for each picture, in order: as many as pictures"),
    format: z.enum(pictureFormats).default("png"),
    output: z.enum(["url", "b64"]).default("url").describe("an expiring signed URL, or the file itself in base64"),
    cache: z.enum(cacheModes).default("auto"),
    deadline: z.int().min(1).max(MAX_DEADLINE_S).default(DEFAULT_DEADLINE_S).describe("seconds until the job has to have ended"),
  })
  .meta({ id: "GenerationRequest" });
export type GenerationRequest = z.infer<typeof generationRequestSchema>;
export type PictureOverrides = z.infer<typeof pictureOverridesSchema>;

/**
 * A request with nothing left open, as records and answers have it: sending it again makes the same pictures. Input files stand in it by id,
 * adapters by id with what they were. Records of before a field was there read as its default.
 */
export const resolvedRequestSchema = generationRequestSchema
  .extend({
    ...{ width: z.int(), height: z.int(), steps: z.int(), seed: seedSchema, sampler: samplerNameSchema, num_images: z.int() },
    ...{ guidance_scale: z.number(), guidance_rescale: z.number() },
    clip_skip: z.int().default(0),
  })
  .meta({ id: "ResolvedRequest" });
export type ResolvedRequest = z.infer<typeof resolvedRequestSchema>;
