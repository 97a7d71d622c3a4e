/** Prompts to token ids. */
import { z } from "zod";
import { type ClipVocabulary, clipTokenizer, vocabularyFromMerges } from "../../tokenizer/clip.ts";
import { readClipMerges, readClipVocabulary } from "../../tokenizer/load.ts";
import type { VerifyKind } from "../kind.ts";

const clipLength = 77;

const paramsSchema = z.object({
  vocabulary: z.enum(["clip-full", "folder"]),
  merges: z.int().min(0),
  prompts: z.array(z.string()),
  padding: z.enum(["none", "max_length"]),
  maxLength: z.int().nullish(),
  pad: z.string().optional(),
});
type Params = z.infer<typeof paramsSchema>;

export const tokenizerKind: VerifyKind = {
  kind: "tokenizer",
  supports: () => null,
  async run({ params }, context) {
    const parsed = paramsSchema.parse(params);
    const tokenizer = clipTokenizer(parsed.vocabulary === "folder" ? folderVocabulary(parsed, context.modelPath) : fullVocabulary(parsed));
    const encode = parsed.padding === "none" ? tokenizer.encode : tokenizer.encodePadded;
    return { ids: { json: parsed.prompts.map(encode) } };
  },
};

function folderVocabulary({ merges, maxLength, pad }: Params, folder: string): ClipVocabulary {
  const vocabulary = readClipVocabulary(folder);
  return {
    ...vocabulary,
    merges: vocabulary.merges.slice(0, merges),
    maxLength: maxLength ?? vocabulary.maxLength,
    pad: pad === undefined || pad === vocabulary.pad.text ? vocabulary.pad : { text: pad, normalized: false },
  };
}

function fullVocabulary({ merges, maxLength, pad }: Params): ClipVocabulary {
  return vocabularyFromMerges(readClipMerges().slice(0, merges), maxLength ?? clipLength, pad);
}
