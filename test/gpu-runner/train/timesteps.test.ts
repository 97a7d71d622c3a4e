import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { z } from "zod";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { trainingAlphas } from "../../../gpu-runner/train/batch.ts";
import { drawTimestep } from "../../../gpu-runner/train/data-cursor.ts";
import { normals } from "../../../gpu-runner/train/random.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { trainingRequest } from "./quadratic.ts";

const numbers = z.array(z.number());
const wanted = z
  .object({ alphas: numbers, gaussians: numbers, timesteps: numbers })
  .parse(JSON.parse(readFileSync("test/goldens/optimizer/timesteps.json", "utf8")));

test("alphas with zero terminal SNR are diffusers'", async () => {
  const model = await loadDiffusionModel("test/goldens/adapters/models/sd15", { provider: "cpu", cacheDir: temporaryFolder() });
  const alphas = trainingAlphas({ model }, { ...trainingRequest.loss, zero_terminal_snr: true });
  expect(alphas).toHaveLength(1000);
  expect(alphas[999]).toBe(0);
  wanted.alphas.forEach((alpha, t) => {
    expect(Math.abs(alphas[t]! - alpha), `timestep ${t}`).toBeLessThan(2e-6);
  });
  const own = trainingAlphas({ model }, { ...trainingRequest.loss, zero_terminal_snr: null });
  expect(own[999]).toBeGreaterThan(1e-3);
  await model.release();
});

test("logit-normal timesteps are those that diffusers makes of the same Gaussians", () => {
  const loss = { ...trainingRequest.loss, timestep_sampling: "logit-normal", timesteps: [0, 999] } as const;
  let checked = 0;
  for (let key = 0n; key < 500n; key++) {
    const gaussian = normals(key, 1)[0]!;
    const above = wanted.gaussians.findIndex(value => value > gaussian);
    if (above <= 0) continue;
    const timestep = drawTimestep({ ...loss, timesteps: [0, 999] }, key);
    // The function rises: between two of the reference's Gaussians it lies between their timesteps.
    expect(timestep).toBeGreaterThanOrEqual(wanted.timesteps[above - 1]!);
    expect(timestep).toBeLessThanOrEqual(wanted.timesteps[above]!);
    checked++;
  }
  expect(checked).toBeGreaterThan(490);
});
