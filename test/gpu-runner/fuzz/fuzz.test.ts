/** A few of the cases of `npm run fuzz`. */
import { join } from "node:path";
import { expect, it } from "vitest";
import { fuzz } from "./fuzz.ts";

it("loads or refuses spoilt weight and adapter files, in time and within its memory", async () => {
  const report = await fuzz(join(import.meta.dirname, "../../goldens/adapters"), 0, 300);
  expect(report.problems).toEqual([]);
  expect(report.cases).toBe(300);
  // Some mutations are harmless; most are not.
  expect(report.loaded).toBeGreaterThan(10);
  expect(report.refused).toBeGreaterThan(150);
});
