import fc from "fast-check";
import { expect, test } from "vitest";
import { isConstant, parseSchedule, promptAt } from "../../../gpu-runner/prompt/schedule.ts";

/** [last step, text] of each stretch of equal texts in a run of ten steps, as A1111 writes them. */
function stretches(prompt: string): [number, string][] {
  const tree = parseSchedule(prompt);
  const texts = Array.from({ length: 10 }, (_, i) => promptAt(tree, { step: i + 1, steps: 10 }));
  return texts.flatMap((text, i): [number, string][] => (text === texts[i + 1] ? [] : [[i + 1, text]]));
}

// The examples that A1111 publishes beside its parser.
test.each<[string, [number, string][]]>([
  ["test", [[10, "test"]]],
  [
    "a [b:3]",
    [
      [3, "a "],
      [10, "a b"],
    ],
  ],
  [
    "a [b: 3]",
    [
      [3, "a "],
      [10, "a b"],
    ],
  ],
  [
    "a [[[b]]:2]",
    [
      [2, "a "],
      [10, "a [[b]]"],
    ],
  ],
  [
    "[(a:2):3]",
    [
      [3, ""],
      [10, "(a:2)"],
    ],
  ],
  [
    "a [b : c : 1] d",
    [
      [1, "a b  d"],
      [10, "a  c  d"],
    ],
  ],
  [
    "a[b:[c:d:2]:1]e",
    [
      [1, "abe"],
      [2, "ace"],
      [10, "ade"],
    ],
  ],
  ["a [unbalanced", [[10, "a [unbalanced"]]],
  [
    "a [b:.5] c",
    [
      [5, "a  c"],
      [10, "a b c"],
    ],
  ],
  [
    "((a][:b:c [d:3]",
    [
      [3, "((a][:b:c "],
      [10, "((a][:b:c d"],
    ],
  ],
  ["[a|(b:1.1)]", Array.from({ length: 10 }, (_, i): [number, string] => [i + 1, i % 2 === 0 ? "a" : "(b:1.1)"])],
  ["[fe|]male", Array.from({ length: 10 }, (_, i): [number, string] => [i + 1, i % 2 === 0 ? "female" : "male"])],
  [
    "[fe|||]male",
    [
      [1, "female"],
      [4, "male"],
      [5, "female"],
      [8, "male"],
      [9, "female"],
      [10, "male"],
    ],
  ],
])("%s", (prompt, expected) => expect(stretches(prompt)).toEqual(expected));

test.each<[string, [number, string][]]>([
  [
    "[a::0.5]",
    [
      [5, "a"],
      [10, ""],
    ],
  ],
  [
    "[a:b:1]",
    [
      [1, "a"],
      [10, "b"],
    ],
  ],
  ["[a:b:1.0]", [[10, "a"]]],
  ["[a:b:0]", [[10, "b"]]],
  [
    "[[a|b]:c:4]",
    [
      [1, "a"],
      [2, "b"],
      [3, "a"],
      [4, "b"],
      [10, "c"],
    ],
  ],
  ["(a:1.2) [b]", [[10, "(a:1.2) [b]"]]],
  ["[a:b]", [[10, "[a:b]"]]],
  ["[a:b:c:3]", [[10, "[a:b:c:3]"]]],
  ["\\[a:b:3\\]", [[10, "\\[a:b:3\\]"]]],
  ["a | b", [[10, "a | b"]]],
])("%s", (prompt, expected) => expect(stretches(prompt)).toEqual(expected));

test("a second pass goes on where the first ended", () => {
  const at = (prompt: string, step: number) => promptAt(parseSchedule(prompt), { step, steps: 4, earlierSteps: 10 });
  expect([1, 2, 3, 4].map(step => at("[a:b:1.5]", step))).toEqual(["a", "a", "b", "b"]);
  expect([1, 2, 3, 4].map(step => at("[a:b:0.5]", step))).toEqual(["b", "b", "b", "b"]);
  expect([1, 2, 3, 4].map(step => at("[a:b:11]", step))).toEqual(["a", "b", "b", "b"]);
});

const words = fc.constantFrom("(", ")", "[", "]", ":", "|", "0.5", "3", "1e9", "\\", "\n", "x", "BREAK");

test("any text is read, at any step", () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string({ unit: "binary" }),
        fc.array(words, { maxLength: 80 }).map(parts => parts.join("")),
      ),
      fc.integer({ min: 1, max: 50 }),
      (prompt, step) => {
        expect(typeof promptAt(parseSchedule(prompt), { step, steps: 50 })).toBe("string");
      },
    ),
    { numRuns: 2000 },
  );
});

test("text without square brackets is the same at every step", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: "binary" }).filter(text => !/[[\]]/.test(text)),
      text => {
        const tree = parseSchedule(text);
        expect([isConstant(tree), promptAt(tree, { step: 1, steps: 1 })]).toEqual([true, text]);
      },
    ),
  );
});

test("a thousand brackets are read quickly", () => {
  const start = performance.now();
  for (const bracket of ["[", "(", "[(", "[a|", "[a:"])
    promptAt(parseSchedule(bracket.repeat(4000) + "]".repeat(4000)), { step: 1, steps: 2 });
  expect(performance.now() - start).toBeLessThan(1000);
});
