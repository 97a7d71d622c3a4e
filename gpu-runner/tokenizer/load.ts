/** Tokenizers from files: a model folder's, and CLIP's own vocabulary that comes with the project. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { z } from "zod";
import type { ClipVocabulary } from "./clip.ts";

const vocabularySchema = z.record(z.string(), z.int().min(0));
/** A plain string is sought as written; older folders say `normalized` in an object. */
const tokenSchema = z.union([
  z.string().transform(text => ({ text, normalized: false })),
  z
    .looseObject({ content: z.string(), normalized: z.boolean().default(false) })
    .transform(({ content, normalized }) => ({ text: content, normalized })),
]);
const configSchema = z.looseObject({
  bos_token: tokenSchema.optional(),
  eos_token: tokenSchema.optional(),
  pad_token: tokenSchema.nullish(),
  unk_token: tokenSchema.nullish(),
  model_max_length: z.number().min(3).optional(),
});

/** What newer transformers writes in place of `vocab.json` and `merges.txt`. */
const tokenizerJsonSchema = z.looseObject({
  model: z.looseObject({
    vocab: vocabularySchema,
    merges: z.array(z.union([z.string(), z.tuple([z.string(), z.string()]).transform(pair => pair.join(" "))])),
  }),
  added_tokens: z.array(z.looseObject({ id: z.int().min(0), content: z.string() })).default([]),
});

/** CLIP's text encoders have 77 positions; a folder that states no length means that. */
const clipLength = 77;

/**
 * Reads `vocab.json` and `merges.txt` (or else `tokenizer.json`), `tokenizer_config.json` and `special_tokens_map.json` of a tokenizer folder.
 * @param maxLength positions of the text encoder, where they are known: some folders state no length, or 1e30
 * @throws Error that names the file and what is wrong with it
 */
export function readClipVocabulary(folder: string, maxLength = clipLength): ClipVocabulary {
  const specials = optionalJson(join(folder, "special_tokens_map.json"));
  const config = { ...specials, ...optionalJson(join(folder, "tokenizer_config.json")) };
  const eos = config.eos_token ?? { text: "<|endoftext|>", normalized: false };
  return {
    ...readSymbols(folder),
    bos: config.bos_token ?? { text: "<|startoftext|>", normalized: false },
    eos,
    pad: config.pad_token ?? eos,
    unknown: config.unk_token ?? eos,
    maxLength: Math.min(config.model_max_length ?? maxLength, maxLength),
  };
}

function readSymbols(folder: string): Pick<ClipVocabulary, "ids" | "merges"> {
  const [vocabularyFile, singleFile] = [join(folder, "vocab.json"), join(folder, "tokenizer.json")];
  if (existsSync(vocabularyFile) || !existsSync(singleFile)) {
    const ids = new Map(Object.entries(parseJson(vocabularyFile, vocabularySchema)));
    return { ids, merges: mergeLines(readFileSync(join(folder, "merges.txt"), "utf8")) };
  }
  const { model, added_tokens: added } = parseJson(singleFile, tokenizerJsonSchema);
  const ids = new Map([...Object.entries(model.vocab), ...added.map(({ content, id }) => [content, id] as const)]);
  return { ids, merges: model.merges };
}

/** The 48,894 merges of OpenAI's CLIP, which released checkpoints in single files presuppose. */
export function readClipMerges(): string[] {
  return mergeLines(gunzipSync(readFileSync(new URL("../../models/clip-vocabulary/merges.txt.gz", import.meta.url))).toString("utf8"));
}

/** The first line is a version header. */
function mergeLines(text: string): string[] {
  const lines = text.split("\n").filter(line => line !== "");
  return lines[0]?.startsWith("#version") ? lines.slice(1) : lines;
}

function optionalJson(path: string): z.infer<typeof configSchema> {
  return existsSync(path) ? parseJson(path, configSchema) : {};
}

function parseJson<T>(path: string, schema: z.ZodType<T>): T {
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new Error(`${path}: expected a readable JSON file: ${error instanceof Error ? error.message : error}`);
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new Error(`${path}: ${issue!.path.join(".") || "file"}: ${issue!.message}`);
}
