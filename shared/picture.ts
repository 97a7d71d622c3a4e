import { z } from "zod";
import { canonicalize, sha256Hex } from "./canonical.ts";
import { ENGINE_VERSION } from "./engine.ts";
import { contentHashSchema } from "./names.ts";
import { samplerNameSchema, samplerOptionsSchema } from "./samplers.ts";

export const pictureFormats = ["png", "webp", "jpeg"] as const;
export type PictureFormat = (typeof pictureFormats)[number];
/** Media type of each format. */
export const mediaTypes = { png: "image/png", webp: "image/webp", jpeg: "image/jpeg" } as const satisfies Record<PictureFormat, string>;

export const MAX_SEED = 2 ** 32 - 1;
export const seedSchema = z.int().min(0).max(MAX_SEED);

/**
 * Everything that determines one picture, with every default filled in and every name resolved to a content hash.
 * Its canonical form is the cache key and what a runner computes; it has no tenant, job or time in it.
 */
export const pictureRequestSchema = z.strictObject({
  engine_version: z.literal(ENGINE_VERSION),
  task: z.literal("text-to-image"),
  model: contentHashSchema,
  prompt: z.string(),
  negative_prompt: z.string(),
  width: z.int().positive(),
  height: z.int().positive(),
  steps: z.int().positive(),
  guidance_scale: z.number(),
  guidance_rescale: z.number(),
  seed: seedSchema,
  sampler: samplerNameSchema,
  sampler_options: samplerOptionsSchema,
  adapters: z.tuple([]).describe("empty until adapters are served"),
  format: z.enum(pictureFormats),
});
export type PictureRequest = z.infer<typeof pictureRequestSchema>;

/** Canonical text of a picture request (RFC 8785). It is stored, hashed, sent to the runner and hashed there again. */
export function canonicalPictureRequest(request: PictureRequest): string {
  return canonicalize(request);
}

/** SHA-256 of a canonical picture request, 64 hexadecimal digits: the cache key within a tenant. */
export function hashPictureRequest(canonical: string): Promise<string> {
  return sha256Hex(canonical);
}
