import { z } from "zod";
import { adapterFileSchema, adapterKindSchema, adapterManifestSchema } from "./adapter.ts";
import { adapterNameSchema, contentHashSchema, idSchema } from "./names.ts";
import { uploadCapabilitySchema } from "./upload.ts";

/** Adapters as clients upload and see them. */

/** R2 takes no greater file in one piece, and clients send theirs in one. */
export const MAX_ADAPTER_FILE_BYTES = 4_995_000_000;
export const MAX_ADAPTER_FILES = 16;

export const adapterVisibilities = ["private", "public"] as const;
export const adapterStatuses = ["uploading", "ready", "refused"] as const;

/** What a client says of an adapter; everything else is read from its files. */
const stated = {
  name: adapterNameSchema,
  visibility: z
    .enum(adapterVisibilities)
    .default("private")
    .describe("public: every tenant may use it; needs a key with the scope publish"),
  kind: adapterKindSchema.optional().describe("refused unless the files are of this kind"),
  token: z.string().min(1).max(100).optional().describe("of a textual inversion: the word for it in prompts; its file's own where absent"),
};

/** Body of `POST /v1/adapters` where the files come later. */
export const adapterUploadSchema = z
  .strictObject({
    ...stated,
    files: z
      .array(adapterFileSchema.extend({ bytes: z.int().min(1).max(MAX_ADAPTER_FILE_BYTES) }))
      .min(1)
      .max(MAX_ADAPTER_FILES)
      .refine(files => new Set(files.map(({ path }) => path)).size === files.length, "expected paths that differ"),
  })
  .meta({ id: "AdapterUpload" });
export type AdapterUpload = z.infer<typeof adapterUploadSchema>;

/** The fields beside the files of a multipart `POST /v1/adapters`. */
export const adapterFormSchema = z.strictObject(stated);

export const adapterViewSchema = z
  .object({
    id: idSchema("adapter"),
    object: z.literal("adapter"),
    name: z.string(),
    version: z.int().describe("counts the contents that the name has had"),
    hash: contentHashSchema,
    visibility: z.enum(adapterVisibilities),
    owned: z.boolean().describe("false: another tenant's, made public"),
    status: z.enum(adapterStatuses),
    reasons: z.array(z.string()).describe("why it was refused"),
    kind: adapterKindSchema.nullable().describe("null until it is ready"),
    token: z.string().nullable().describe("of a textual inversion, the word for it in prompts"),
    manifest: adapterManifestSchema.omit({ hash: true, kind: true, files: true, token: true }).nullable(),
    bytes: z.int().describe("of all files"),
    created_at: z.iso.datetime(),
    files: z.array(
      adapterFileSchema.extend({ upload: uploadCapabilitySchema.nullable().describe("how to send the file; null where it is there") }),
    ),
  })
  .meta({ id: "Adapter" });
export type AdapterView = z.infer<typeof adapterViewSchema>;
