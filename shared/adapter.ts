import { z } from "zod";
import { canonicalize, sha256Hex } from "./canonical.ts";
import { modelFamilySchema } from "./model.ts";
import { contentHashSchema, sha256Schema } from "./names.ts";

/** What changes a model's behaviour from outside. One row of every table over adapters per kind. */
export const adapterKinds = ["lora", "textual-inversion", "hypernetwork", "ip-adapter", "controlnet", "t2i-adapter"] as const;
export const adapterKindSchema = z.enum(adapterKinds);
export type AdapterKind = z.infer<typeof adapterKindSchema>;

/** Layout of the kind ip-adapter: a CLIP vision encoder by itself, which trainings take and no picture. */
export const imageEncoderLayout = "image-encoder";

/** A file of an adapter. Most adapters are one file; a PEFT or diffusers folder, or an inversion of both SDXL encoders, is several. */
export const adapterFileSchema = z.strictObject({
  path: z
    .string()
    .max(200)
    .regex(/^(?!.*(^|\/)\.)[A-Za-z0-9._-]+(\/[A-Za-z0-9._-]+)*$/, "expected a relative path of A-Z a-z 0-9 . _ - /"),
  sha256: sha256Schema,
  bytes: z.int().positive(),
});
export type AdapterFile = z.infer<typeof adapterFileSchema>;

/**
 * Files by paths below the folder that all of them are in: a folder's name comes along where browsers send a folder, and says nothing of its content.
 */
export function withoutCommonFolder<F extends Pick<AdapterFile, "path">>(files: readonly F[]): F[] {
  const folders = files.map(({ path }) => path.split("/").slice(0, -1));
  const [first = []] = folders;
  const differs = first.findIndex((name, depth) => folders.some(folder => folder[depth] !== name));
  const shared = first.slice(0, differs < 0 ? first.length : differs).join("/");
  return files.map(file => ({ ...file, path: shared === "" ? file.path : file.path.slice(shared.length + 1) }));
}

/** The content hash of an adapter: of its one file, or of the canonical JSON of the sorted [path, SHA-256] of several. */
export async function adapterHash(files: readonly Pick<AdapterFile, "path" | "sha256">[]): Promise<string> {
  const [only, second] = files;
  if (only && !second) return `sha256:${only.sha256}`;
  const rows = files.map(({ path, sha256 }) => [path, sha256]).sort(([a], [b]) => (a! < b! ? -1 : 1));
  return `sha256:${await sha256Hex(canonicalize(rows))}`;
}

/** What an adapter's headers tell, without reading its weights: enough to refuse a base that it cannot fit. */
export const adapterManifestSchema = z.strictObject({
  hash: contentHashSchema,
  kind: adapterKindSchema,
  layout: z.string().describe("which published layout it has, a row of docs/support.md"),
  families: z.array(modelFamilySchema).describe("families whose widths it fits; empty where the headers don't tell"),
  cross_attention_dim: z.int().positive().nullable().describe("width of the text states that it reads; null where it reads none"),
  text_widths: z.array(z.int().positive().nullable()).describe("width that it needs of each text encoder; null where it leaves one alone"),
  token: z.string().nullable().describe("of a textual inversion, the word in its file"),
  parameters: z.int().min(0),
  files: z.array(adapterFileSchema).nonempty(),
});
export type AdapterManifest = z.infer<typeof adapterManifestSchema>;
