import { z } from "zod";
import { modelNameSchema } from "./names.ts";
import { pictureFormats, seedSchema } from "./picture.ts";
import { samplerNameSchema, samplerOptionsSchema } from "./samplers.ts";

export const MAX_PICTURES = 8;
export const MAX_PROMPT_CHARACTERS = 8192;
export const MAX_STEPS = 150;
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

/** Body of `POST /v1/generations`. What is absent is filled in from the model's manifest. */
export const generationRequestSchema = z
  .strictObject({
    prompt: text.min(1).describe("what to draw"),
    negative_prompt: text.default("").describe("what to steer away from"),
    model: modelNameSchema.default("pocket"),
    clip_skip: z
      .int()
      .min(0)
      .max(11)
      .optional()
      .describe("layers left out at the text encoders' end, as diffusers counts: A1111's value less one"),
    width: z.int().positive().optional().describe("pixels; a multiple of the model's size_multiple"),
    height: z.int().positive().optional().describe("pixels; a multiple of the model's size_multiple"),
    steps: z.int().min(1).max(MAX_STEPS).optional().describe("sampling steps"),
    guidance_scale: z.number().min(0).max(50).optional().describe("classifier-free guidance; 1 or less turns it off"),
    guidance_rescale: z
      .number()
      .min(0)
      .max(1)
      .optional()
      .describe("share of the guided prediction that is rescaled to the plain one's deviation (arXiv 2305.08891)"),
    seed: seedSchema.optional().describe("picture i gets seed + i, modulo 2^32"),
    sampler: samplerNameSchema.optional(),
    sampler_options: samplerOptionsSchema.default({}),
    num_images: z.int().min(1).max(MAX_PICTURES).default(1),
    format: z.enum(pictureFormats).default("png"),
    output: z.enum(["url", "b64"]).default("url").describe("an expiring signed URL, or the file itself in base64"),
    adapters: z.array(z.unknown()).max(0, "expected an empty list: adapters are not served yet").default([]),
    cache: z.enum(cacheModes).default("auto"),
    deadline: z.int().min(1).max(MAX_DEADLINE_S).default(DEFAULT_DEADLINE_S).describe("seconds until the job has to have ended"),
  })
  .meta({ id: "GenerationRequest" });
export type GenerationRequest = z.infer<typeof generationRequestSchema>;

/** A request with nothing left open. Records of before a field was there read as its default. */
export const resolvedRequestSchema = generationRequestSchema.required().extend({ clip_skip: z.int().default(0) });
export type ResolvedRequest = z.infer<typeof resolvedRequestSchema>;
