/** ControlNets, T2I-Adapters and IP-Adapters of every layout and variant against diffusers' numbers. */
import { join } from "node:path";
import { expect, test } from "vitest";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { verifyKinds } from "../../../gpu-runner/verify/kinds/index.ts";
import { runCases } from "../../../gpu-runner/verify/run.ts";
import { goldens } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

test("every reference case of image-adapters passes, and each kind has one", async () => {
  const cacheDir = temporaryFolder();
  const results = await runCases({
    folder: join(goldens, "../image-adapters"),
    kinds: verifyKinds,
    cacheDir,
    load: path => loadDiffusionModel(path, { provider: "cpu", cacheDir, threads: 1 }),
  });
  expect(results.filter(({ status }) => status !== "pass")).toEqual([]);
  expect(new Set(results.map(({ kind }) => kind))).toEqual(new Set(["controlnet", "t2i-adapter", "ip-adapter"]));
}, 60_000);
