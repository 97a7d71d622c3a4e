import { join } from "node:path";
import { expect, test } from "vitest";
import { diffusersClasses, kDiffusionFunctions } from "../../../gpu-runner/schedulers/config.ts";
import { readCases } from "../../../gpu-runner/verify/cases.ts";
import { noiseKind } from "../../../gpu-runner/verify/kinds/noise.ts";
import { schedulerKind } from "../../../gpu-runner/verify/kinds/scheduler.ts";
import { runCases } from "../../../gpu-runner/verify/run.ts";
import { sigmaSchedules, sigmaScheduleTraits } from "../../../shared/samplers.ts";

const folder = (name: string) => join(import.meta.dirname, "../../goldens", name);

for (const name of ["base", "samplers"]) {
  const only = ["scheduler", "noise"];
  const results = await runCases({
    folder: folder(name),
    kinds: { scheduler: schedulerKind, noise: noiseKind },
    only,
    cacheDir: folder(name),
    load: () => Promise.reject(new Error("these kinds need no model")),
  });
  test.each(results)(`${name}: $name`, result => {
    expect(result).toMatchObject({ status: "pass" });
  });
}

test("every sampler loop has a reference case", () => {
  const proved = ["base", "samplers"].flatMap(name => readCases(folder(name)).map(({ params }) => params.scheduler));
  expect([...diffusersClasses, ...kDiffusionFunctions].filter(name => !proved.includes(name))).toEqual([]);
});

test("every schedule that diffusers lacks has a case", () => {
  const proved = readCases(folder("samplers")).map(({ params }) => JSON.stringify(params.config));
  const lacking = sigmaSchedules.filter(name => !["normal", "karras", "exponential", "beta", "lu"].includes(name));
  for (const name of lacking) {
    expect([name, proved.some(config => config.includes(`"named_schedule":"${name}"`))]).toEqual([name, true]);
    expect(sigmaScheduleTraits[name].proof).not.toBe("untested");
  }
});
