import { join } from "node:path";
import { expect, test } from "vitest";
import { verifyKinds } from "../../../gpu-runner/verify/kinds/index.ts";
import { runCases } from "../../../gpu-runner/verify/run.ts";

const folder = join(import.meta.dirname, "../../goldens/prompt-schedules");

test("changing prompts are what A1111's parser makes of them, at every step", async () => {
  const load = () => Promise.reject(new Error("these cases have no model"));
  const results = await runCases({ folder, kinds: verifyKinds, cacheDir: folder, load });
  expect(results.length).toBeGreaterThan(100);
  expect(results.filter(({ status }) => status !== "pass")).toEqual([]);
});
