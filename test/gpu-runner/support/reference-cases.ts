/** Folders of reference cases as tests: every case has to pass, none may be unsupported. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { readCases } from "../../../gpu-runner/verify/cases.ts";
import { verifyKinds } from "../../../gpu-runner/verify/kinds/index.ts";
import { type CaseResult, runCases } from "../../../gpu-runner/verify/run.ts";

/** A test for each case of `test/goldens/<name>`. */
export function testReferenceCases(name: string): void {
  const folder = join(import.meta.dirname, "../../goldens", name);
  const cases = readCases(folder);
  let cacheDir: string;
  let results: CaseResult[];

  beforeAll(async () => {
    cacheDir = mkdtempSync(join(tmpdir(), `atelier-${name}-`));
    results = await runCases({
      folder,
      kinds: verifyKinds,
      cacheDir,
      load: path => loadDiffusionModel(path, { provider: "cpu", cacheDir }),
    });
  }, 120_000);
  afterAll(() => rmSync(cacheDir, { recursive: true, force: true }));

  test.each(cases.map(({ name }, index) => ({ name, index })))("$name", ({ index }) => {
    expect(results[index]).toMatchObject({ name: cases[index]!.name, status: "pass" });
  });
}
