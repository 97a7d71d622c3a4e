import { z } from "zod";
import { idSchema, sha256Schema } from "./names.ts";

/** Files that a client hands in: pictures, and the face embeddings of FaceID adapters. */

export const MAX_INPUT_BYTES = 32 * 1024 * 1024;
/** An input that no request has used for so long is deleted. */
export const INPUT_KEPT_DAYS = 7;

export const inputMediaTypes = ["image/png", "image/webp", "image/jpeg", "application/x-safetensors"] as const;
export type InputMediaType = (typeof inputMediaTypes)[number];

/** How to send a file: a URL that takes exactly this one, without a key, until it expires. */
export const uploadCapabilitySchema = z
  .object({
    method: z.literal("PUT"),
    url: z.string().describe("takes the file as its body, without an API key"),
    headers: z.record(z.string(), z.string()).describe("to be sent with it"),
    expires_at: z.iso.datetime(),
  })
  .meta({ id: "UploadCapability" });
export type UploadCapability = z.infer<typeof uploadCapabilitySchema>;

/** Body of `POST /v1/uploads` where the file itself comes later. */
export const uploadRequestSchema = z
  .strictObject({
    sha256: sha256Schema.describe("of the file"),
    bytes: z.int().min(1).max(MAX_INPUT_BYTES),
    media_type: z.enum(inputMediaTypes),
  })
  .meta({ id: "UploadRequest" });
export type UploadRequest = z.infer<typeof uploadRequestSchema>;

export const uploadViewSchema = z
  .object({
    id: idSchema("upload"),
    object: z.literal("upload"),
    status: z.enum(["waiting", "ready"]).describe("waiting: the file has not come yet"),
    sha256: sha256Schema,
    bytes: z.int(),
    media_type: z.enum(inputMediaTypes),
    width: z.int().nullable().describe("of a picture that is ready, in pixels, where its header tells"),
    height: z.int().nullable(),
    created_at: z.iso.datetime(),
    expires_at: z.iso.datetime().describe("deleted then, unless a generation uses it before"),
    upload: uploadCapabilitySchema.nullable().describe("how to send the file; null where it is there"),
  })
  .meta({ id: "Upload" });
export type UploadView = z.infer<typeof uploadViewSchema>;
