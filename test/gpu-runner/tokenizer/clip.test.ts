import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { byteSymbols } from "../../../gpu-runner/tokenizer/bpe.ts";
import { clipTokenizer, vocabularyFromMerges } from "../../../gpu-runner/tokenizer/clip.ts";
import { readClipMerges, readClipVocabulary } from "../../../gpu-runner/tokenizer/load.ts";

const folder = join(import.meta.dirname, "../../goldens/base/models/sd15/tokenizer");
const vocabulary = vocabularyFromMerges(readClipMerges(), 77);
const tokenizer = clipTokenizer(vocabulary);
const [bos, eos] = [49406, 49407];
const inner = (text: string) => tokenizer.encode(text).slice(1, -1);

describe("CLIP's vocabulary", () => {
  test("has the ids that released checkpoints mean", () => {
    expect(vocabulary.ids.size).toBe(49408);
    expect(tokenizer.encode("a photo of a cat")).toEqual([bos, 320, 1125, 539, 320, 2368, eos]);
  });

  test("has a symbol for each byte", () => {
    expect(new Set(byteSymbols.map(({ byte }) => byte)).size).toBe(256);
    expect(new Set(byteSymbols.map(({ symbol }) => symbol)).size).toBe(256);
  });
});

describe("text rules of the reference", () => {
  test.each([
    { rule: "composed and decomposed letters are one", a: "cafe\u0301", b: "caf\u00e9" },
    { rule: "case does not count", a: "A PHOTO", b: "a photo" },
    { rule: "lower case knows no final sigma", a: "ΣΊΣ", b: "σίσ" },
    { rule: "U+0085 is white space", a: "a\u0085b", b: "a b" },
    { rule: "U+2028 is white space", a: "a\u2028b", b: "a b" },
    { rule: "white space at the ends does not count", a: " \t a cat \n", b: "a cat" },
  ])("$rule", ({ a, b }) => {
    expect(inner(a)).toEqual(inner(b));
  });

  test.each([
    { rule: "U+200B is no white space", a: "a\u200bb", b: "a b" },
    { rule: "U+FEFF is no white space", a: "a\ufeffb", b: "a b" },
    { rule: "final sigma stays another letter", a: "σίς", b: "σίσ" },
    { rule: "HTML entities stay as written", a: "&amp;", b: "&" },
  ])("$rule", ({ a, b }) => {
    expect(inner(a)).not.toEqual(inner(b));
  });

  test("digits stand alone", () => {
    expect(inner("1999")).toEqual(["1", "9", "9", "9"].flatMap(inner));
  });
});

describe("special tokens", () => {
  const withPad = (text: string, normalized: boolean) => clipTokenizer({ ...vocabulary, pad: { text, normalized } });

  test("are recognised in a prompt", () => {
    expect(inner("a <|endoftext|> b")).toEqual([320, eos, 321]);
  });

  test("declared as written, count in their exact case only", () => {
    expect(inner("<|ENDOFTEXT|>")).not.toContain(eos);
    expect(inner("<|endoftext|>")).toEqual([eos]);
  });

  test("spelt in another case, end the piece behind them and not the one before", () => {
    const ids = (symbols: string[]) => symbols.map(symbol => vocabulary.ids.get(symbol));
    expect(inner(":<|ENDOFTEXT|>!")).toEqual([...ids([":", "<", "|</w>"]), ...inner("endoftext"), ...ids(["|", ">", "!</w>"])]);
    expect(inner("<|ENDOFTEXT|>!")).toEqual([...inner("<|"), ...inner("endoftext"), ...inner("|>"), ...inner("!")]);
  });

  test("declared normalized, count in any case", () => {
    expect(withPad("!", false).encode("<|EndOfText|>")).toEqual([bos, eos, eos]);
  });

  test("include the pad token", () => {
    expect(withPad("!", false).encode("wow!!")).toEqual([bos, ...inner("wow"), 0, 0, eos]);
  });

  test("have to be in the vocabulary", () => {
    expect(() => withPad("<|pad|>", false)).toThrow('expected the special token "<|pad|>" in the vocabulary');
  });
});

describe("padding", () => {
  test("fills with eos for SD 1", () => {
    expect(tokenizer.encodePadded("a")).toEqual([bos, 320, ...new Array<number>(75).fill(eos)]);
  });

  test("cuts long prompts to leave room for eos", () => {
    const ids = tokenizer.encodePadded("cat ".repeat(100));
    expect(ids).toEqual([bos, ...new Array<number>(tokenizer.maxTokens).fill(2368), eos]);
  });

  test("any text gives as many ids as the model reads, all of them known", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 200 }), text => {
        const ids = tokenizer.encodePadded(text);
        expect(ids).toHaveLength(77);
        expect(ids.every(id => Number.isInteger(id) && id >= 0 && id < 49408)).toBe(true);
      }),
    );
  });
});

describe("a model folder", () => {
  test("gives length, merges and special tokens", () => {
    const read = readClipVocabulary(folder);
    expect(read).toMatchObject({
      maxLength: 77,
      eos: { text: "<|endoftext|>", normalized: true },
      pad: { text: "<|endoftext|>", normalized: false },
    });
    expect(read.ids).toEqual(vocabularyFromMerges(read.merges, 77).ids);
  });

  test("may hold tokenizer.json alone, as newer transformers writes it", () => {
    const scratch = mkdtempSync(join(tmpdir(), "atelier-tokenizer-test-"));
    const { ids, merges } = readClipVocabulary(folder);
    const added = ["<|startoftext|>", "<|endoftext|>"].map(content => ({ id: ids.get(content), content, special: true }));
    const vocab = Object.fromEntries([...ids].filter(([token]) => !added.some(({ content }) => content === token)));
    const pairs = merges.map((merge, i) => (i % 2 === 0 ? merge : merge.split(" ")));
    writeFileSync(join(scratch, "tokenizer.json"), JSON.stringify({ added_tokens: added, model: { type: "BPE", vocab, merges: pairs } }));
    const read = readClipVocabulary(scratch, 40);
    rmSync(scratch, { recursive: true });
    expect(read.ids).toEqual(ids);
    expect(read.merges).toEqual(merges);
    expect(clipTokenizer(read).encodePadded("a cat")).toHaveLength(40);
  });

  test("that is missing is named", () => {
    expect(() => readClipVocabulary("/nowhere")).toThrow("/nowhere/vocab.json");
  });
});
