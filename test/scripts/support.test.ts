import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { supportPage } from "../../scripts/support.ts";

test("docs/support.md says what the tables in the code say: npm run support", () => {
  expect(readFileSync("docs/support.md", "utf8")).toBe(supportPage());
});
