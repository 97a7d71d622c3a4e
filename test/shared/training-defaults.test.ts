import { expect, test } from "vitest";
import { modelFamilies } from "../../shared/model.ts";
import { trainingMethods, trainingRequestSchema } from "../../shared/training.ts";
import { trainingDefaults } from "../../shared/training-defaults.ts";

const widths = (parameters: number, side: number) => ({
  cross_attention_dim: 768,
  text_widths: [768] as [number, ...number[]],
  parameters,
  size_multiple: 8,
  defaults: {
    width: side,
    height: side,
    steps: 20,
    guidance_scale: 7,
    guidance_rescale: 0,
    sampler: "ddim",
    sampler_options: {},
    clip_skip: 0,
  } as const,
});
const item = { sha256: "a".repeat(64), caption: "a zxq", width: 64, height: 64, split: "train", mask: null, condition: null, concept: 0 };
const rest = {
  engine_version: 1,
  model: `sha256:${"5a".repeat(32)}`,
  concepts: [{ token: "zxq", class_prompt: null }],
  items: [item],
  seed: 1,
  sample_prompts: [],
  budget_ms: null,
  dry_run: false,
};

test.each(trainingMethods)("%s: what is filled in makes a valid request of its own method, for every family and size", method => {
  for (const family of modelFamilies)
    for (const [parameters, side] of [
      [14.8e6, 128],
      [1.07e9, 512],
      [3.5e9, 1024],
    ] as const) {
      const filled = trainingDefaults(method, family, widths(parameters, side));
      const request = trainingRequestSchema.parse({ ...rest, ...filled });
      expect(request.settings.method).toBe(method);
      expect(request.resolution).toBe(side);
      expect(request.optimizer.warmup_steps).toBeLessThan(Math.max(request.steps, 1));
    }
});

test("small models learn in larger steps and fewer of them; SDXL in smaller ones", () => {
  const of = (family: "sd1" | "sdxl", parameters: number) => trainingDefaults("lora", family, widths(parameters, 512));
  expect(of("sd1", 15e6).optimizer.learning_rate).toBeGreaterThan(of("sd1", 1e9).optimizer.learning_rate);
  expect(of("sd1", 15e6).steps).toBeLessThan(of("sd1", 1e9).steps);
  expect(of("sdxl", 3e9).optimizer.learning_rate).toBe(of("sd1", 1e9).optimizer.learning_rate / 2);
});
