import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { readCases } from "../../../gpu-runner/verify/cases.ts";
import { verifyKinds } from "../../../gpu-runner/verify/kinds/index.ts";
import { type CaseResult, runCases } from "../../../gpu-runner/verify/run.ts";

const folder = join(import.meta.dirname, "../../goldens/passes");
const cases = readCases(folder);
let cacheDir: string;
let results: CaseResult[];

beforeAll(async () => {
  cacheDir = mkdtempSync(join(tmpdir(), "atelier-passes-"));
  results = await runCases({ folder, kinds: verifyKinds, cacheDir, load: path => loadDiffusionModel(path, { provider: "cpu", cacheDir }) });
});
afterAll(() => rmSync(cacheDir, { recursive: true, force: true }));

test.each(cases.map(({ name }, index) => ({ name, index })))("$name", ({ index }) => {
  expect(results[index]).toMatchObject({ name: cases[index]!.name, status: "pass" });
});
