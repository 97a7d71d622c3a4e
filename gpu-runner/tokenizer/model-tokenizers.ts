/** The tokenizers of a model, one per text encoder: from their folders, or CLIP's own where a single file came without any. */
import type { ModelDescription } from "../weights/describe.ts";
import { type ClipTokenizer, clipTokenizer, vocabularyFromMerges } from "./clip.ts";
import { readClipMerges, readClipVocabulary } from "./load.ts";

/** Throws Error that names the file of a tokenizer and what is wrong with it. */
export function tokenizersOf({ tokenizers }: Pick<ModelDescription, "tokenizers">): ClipTokenizer[] {
  return tokenizers.map(({ folder, pad, maxLength }) =>
    clipTokenizer(
      folder === null ? vocabularyFromMerges(readClipMerges(), maxLength, pad ?? undefined) : readClipVocabulary(folder, maxLength),
    ),
  );
}
