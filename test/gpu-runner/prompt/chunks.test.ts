import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { promptChunks } from "../../../gpu-runner/prompt/chunks.ts";
import { clipTokenizer, vocabularyFromMerges } from "../../../gpu-runner/tokenizer/clip.ts";

/** Eight tokens a chunk; a letter is a token. */
const tokenizer = clipTokenizer(vocabularyFromMerges([], 10));
const [a, comma] = [tokenizer.tokens("a")[0]!, tokenizer.tokens(",")[0]!];
const letters = (count: number) => "a ".repeat(count);

describe("chunks", () => {
  test("hold all tokens, and there is always one", () => {
    expect(promptChunks("", "plain", tokenizer)).toEqual([{ ids: [], weights: [] }]);
    expect(promptChunks(letters(20), "plain", tokenizer).map(({ ids }) => ids.length)).toEqual([8, 8, 4]);
  });

  test("end at a comma near their end in A1111's syntax alone", () => {
    const text = `${letters(5)}, ${letters(4)}`;
    expect(promptChunks(text, "plain", tokenizer).map(({ ids }) => ids.length)).toEqual([8, 2]);
    expect(promptChunks(text, "a1111", tokenizer).map(({ ids }) => ids)).toEqual([
      [a, a, a, a, a, comma],
      [a, a, a, a],
    ]);
  });

  test("end at BREAK, and carry the weight of each token", () => {
    expect(promptChunks("a (a:1.5) BREAK a", "a1111", tokenizer)).toEqual([
      { ids: [a, a], weights: [1, 1.5] },
      { ids: [a], weights: [1] },
    ]);
    expect(promptChunks("(a:1.5)", "plain", tokenizer)[0]!.weights).toSatisfy((weights: number[]) => weights.every(weight => weight === 1));
  });

  test("keep an inversion's rows together where they fit, the longest word first", () => {
    const words = [
      { word: "cat", ids: [900] },
      { word: "cat-toy", ids: [901, 902, 903] },
    ];
    expect(promptChunks(`${letters(6)}cat-toy a cat`, "plain", tokenizer, words).map(({ ids }) => ids)).toEqual([
      [a, a, a, a, a, a],
      [901, 902, 903, a, 900],
    ]);
    const long = [{ word: "x", ids: Array.from({ length: 10 }, (_, i) => 900 + i) }];
    expect(promptChunks("a x", "plain", tokenizer, long).map(({ ids }) => ids.length)).toEqual([1, 8, 2]);
  });

  test("lose no token of any text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 200 }), text => {
        const chunks = promptChunks(text, "plain", tokenizer);
        expect(chunks.flatMap(({ ids }) => ids)).toEqual(tokenizer.tokens(text));
        expect(chunks.every(({ ids }) => ids.length <= 8)).toBe(true);
      }),
    );
  });
});

test("a chunk has its marks and padding, and takes no more than it has room for", () => {
  const [bos, eos] = [tokenizer.encode("")[0]!, tokenizer.encode("")[1]!];
  expect(tokenizer.chunk([a])).toEqual([bos, a, eos, ...new Array(7).fill(eos)]);
  expect(() => tokenizer.chunk(new Array(9).fill(a))).toThrow("tokens of a chunk: expected at most 8, got 9");
});
