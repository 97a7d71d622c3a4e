/** Every reference case of adapters, through the product's own code. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { readCases } from "../../../gpu-runner/verify/cases.ts";
import { verifyKinds } from "../../../gpu-runner/verify/kinds/index.ts";
import { runCases } from "../../../gpu-runner/verify/run.ts";

const cacheDir = mkdtempSync(join(tmpdir(), "atelier-verify-adapters-"));
afterAll(() => rmSync(cacheDir, { recursive: true, force: true }));

it.each(["adapters", "adapter-layouts"])(
  "%s: every case passes, none is unsupported",
  async name => {
    const folder = join(import.meta.dirname, "../../goldens", name);
    const load = (path: string) => loadDiffusionModel(path, { provider: "cpu", cacheDir });
    const results = await runCases({ folder, kinds: verifyKinds, cacheDir, load });
    expect(results.filter(({ status }) => status !== "pass")).toEqual([]);
    expect(results).toHaveLength(readCases(folder).length);
  },
  180_000,
);
