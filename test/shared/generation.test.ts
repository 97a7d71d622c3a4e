import { expect, test } from "vitest";
import { generationRequestSchema } from "../../shared/generation.ts";

test.each(["prompt", "negative_prompt"])("%s: half of a surrogate pair is refused where it comes in", field => {
  const parsed = generationRequestSchema.safeParse({ prompt: "a cat", [field]: "\ud800 cat" });
  expect(parsed.error?.issues.map(({ path, message }) => [path, message])).toEqual([
    [[field], "expected Unicode text, got half of a surrogate pair"],
  ]);
});

test("whole pairs and any other text pass", () => {
  expect(generationRequestSchema.parse({ prompt: "🦊 \0 \uffff" }).prompt).toBe("🦊 \0 \uffff");
});
