import fc from "fast-check";
import { expect, test } from "vitest";
import { parseAttention } from "../../../gpu-runner/prompt/attention.ts";

const pairs = (prompt: string) => parseAttention(prompt).map(part => (part === "BREAK" ? part : [part.text, part.weight]));

// The examples that A1111 publishes beside its parser.
test.each([
  ["normal text", [["normal text", 1]]],
  [
    "an (important) word",
    [
      ["an ", 1],
      ["important", 1.1],
      [" word", 1],
    ],
  ],
  ["(unbalanced", [["unbalanced", 1.1]]],
  ["\\(literal\\]", [["(literal]", 1]]],
  ["(unnecessary)(parens)", [["unnecessaryparens", 1.1]]],
  [
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    [
      ["a ", 1],
      ["house", 1.5730000000000004],
      [" ", 1.1],
      ["on", 1],
      [" a ", 1.1],
      ["hill", 0.55],
      [", sun, ", 1.1],
      ["sky", 1.4641000000000006],
      [".", 1.1],
    ],
  ],
])("%s", (prompt, expected) => expect(pairs(prompt)).toEqual(expected));

test("BREAK stands between parts, also within brackets; as part of a word it is text", () => {
  expect(pairs("a BREAK b (c BREAK d:1.2)")).toEqual([["a", 1], "BREAK", ["b ", 1], ["c", 1.2], "BREAK", ["d", 1.2]]);
  expect(pairs("BREAKFAST")).toEqual([["BREAKFAST", 1]]);
});

test("a stray bracket, colon or backslash is text", () => {
  expect(pairs("a) b] c: \\d")).toEqual([["a) b] c: \\d", 1]]);
});

const prompts = fc.oneof(
  fc.string({ unit: "binary" }),
  fc
    .array(fc.constantFrom("(", ")", "[", "]", ":", "1.5", "-2", "9".repeat(400), "..", "\\", "|", " BREAK ", "word"), { maxLength: 60 })
    .map(parts => parts.join("")),
);

test("any text is read, with finite weights", () => {
  fc.assert(
    fc.property(prompts, prompt => {
      for (const part of parseAttention(prompt)) if (part !== "BREAK") expect(Number.isFinite(part.weight)).toBe(true);
    }),
    { numRuns: 2000 },
  );
});

test("text without any of the language's characters is one part of weight 1", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "binary" }).filter(text => text !== "" && !/[\\()[\]:]|\bBREAK\b/.test(text)),
      text => {
        expect(parseAttention(text)).toEqual([{ text, weight: 1 }]);
      },
    ),
  );
});
