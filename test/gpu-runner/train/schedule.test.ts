import { expect, test } from "vitest";
import { rateFactor } from "../../../gpu-runner/train/schedule.ts";
import type { OptimizerSettings } from "../../../shared/training.ts";

const settings: OptimizerSettings = {
  name: "adamw",
  learning_rate: 1,
  text_learning_rate: null,
  betas: [0.9, 0.999],
  weight_decay: 0,
  epsilon: 1e-8,
  clip_norm: null,
  moments: "float32",
  schedule: "constant",
  warmup_steps: 2,
};
const course = (schedule: OptimizerSettings["schedule"]) => [0, 1, 2, 4, 6].map(step => rateFactor({ ...settings, schedule }, step, 6));

test("each schedule warms up, then takes its course to the end", () => {
  expect(course("constant")).toEqual([0.5, 1, 1, 1, 1]);
  expect(course("linear")).toEqual([0.5, 1, 1, 0.5, 0]);
  expect(course("cosine").map(value => Math.round(value * 1e6) / 1e6)).toEqual([0.5, 1, 1, 0.5, 0]);
});
