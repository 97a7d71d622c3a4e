import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { manifestOf } from "../../scripts/model-manifest.ts";

let folder: string;
beforeEach(() => {
  folder = join(mkdtempSync(join(tmpdir(), "atelier-manifest-")), "My-Model");
  cpSync("test/goldens/base/models/sd15", folder, { recursive: true });
});
afterEach(() => rmSync(join(folder, ".."), { recursive: true }));

function edit(file: string, changes: Record<string, unknown>): void {
  const path = join(folder, file);
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...changes }));
}

describe("manifestOf", () => {
  it("takes name, sizes and sampler from the folder", async () => {
    const manifest = await manifestOf(folder);
    const side = JSON.parse(readFileSync(join(folder, "unet/config.json"), "utf8")).sample_size * manifest.size_multiple;
    expect(manifest).toMatchObject({
      name: "my-model",
      pool: "default",
      family: "sd1",
      tasks: ["text-to-image", "image-to-image", "inpaint"],
      prediction_type: "epsilon",
      cross_attention_dim: 24,
      text_widths: [24],
      max_clip_skip: 2,
      max_prompt_tokens: 75,
      defaults: {
        ...{ width: side, height: side, steps: 50, guidance_scale: 7.5, guidance_rescale: 0 },
        ...{ sampler: "pndm", sampler_options: {}, clip_skip: 0 },
      },
    });
    expect(manifest.hash).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(manifest.max_size).toBe(4 * side);
    expect(manifest.min_size % manifest.size_multiple).toBe(0);
    expect(manifest.min_size).toBeGreaterThanOrEqual(side / 4);
    edit("scheduler/scheduler_config.json", { _class_name: "EulerAncestralDiscreteScheduler" });
    const other = await manifestOf(folder, { name: "chosen", pool: "big" });
    expect(other).toMatchObject({ name: "chosen", pool: "big", defaults: { sampler: "euler_a" } });
    expect(other.hash).not.toBe(manifest.hash);
  });

  it("takes few steps and no guidance where the scheduler's file is that of a distilled model", async () => {
    const scheduler = "scheduler/scheduler_config.json";
    const defaults = async () => (await manifestOf(folder)).defaults;
    for (const _class_name of ["LCMScheduler", "TCDScheduler"]) {
      edit(scheduler, { _class_name });
      expect(await defaults()).toMatchObject({ sampler: _class_name.slice(0, 3).toLowerCase(), steps: 4, guidance_scale: 1 });
    }
    edit(scheduler, { _class_name: "EulerAncestralDiscreteScheduler", timestep_spacing: "trailing" });
    expect(await defaults()).toMatchObject({ sampler: "euler_a", steps: 4, guidance_scale: 1 });
    edit(scheduler, { rescale_betas_zero_snr: true });
    expect(await defaults()).toMatchObject({ sampler: "euler_a", steps: 50, guidance_scale: 7.5 });
  });

  it("tells an inpainting UNet by its channels", async () => {
    cpSync("test/goldens/base/models/inpaint", folder, { recursive: true });
    expect(await manifestOf(folder)).toMatchObject({ family: "sd1", tasks: ["inpaint"] });
  });

  it("reads a single file, its recommendations beside it", async () => {
    const file = join(folder, "..", "XL.safetensors");
    cpSync("test/goldens/base/single/sdxl.safetensors", file);
    writeFileSync(file.replace(".safetensors", ".atelier.json"), JSON.stringify({ description: "large" }));
    const configs = JSON.parse(readFileSync("test/goldens/base/single/sdxl.json", "utf8"));
    const { tokenizer, tokenizer_2, ...rest } = configs;
    expect([tokenizer, tokenizer_2]).toEqual(["../models/sdxl/tokenizer", "../models/sdxl/tokenizer_2"]);
    writeFileSync(file.replace(".safetensors", ".json"), JSON.stringify(rest));
    expect(await manifestOf(file)).toMatchObject({
      ...{ name: "xl", description: "large", family: "sdxl", text_widths: [24, 40], cross_attention_dim: 64 },
      ...{ max_prompt_tokens: 75, max_clip_skip: 2, defaults: { sampler: "euler", guidance_scale: 5 } },
    });
  });

  it("takes its author's recommendations from atelier.json, which is no part of the hash", async () => {
    const { hash } = await manifestOf(folder);
    writeFileSync(
      join(folder, "atelier.json"),
      JSON.stringify({ name: "painter", description: "paints", defaults: { steps: 12, sampler: "dpmpp_2m" } }),
    );
    expect(await manifestOf(folder)).toMatchObject({
      hash,
      name: "painter",
      description: "paints",
      defaults: { steps: 12, sampler: "dpmpp_2m", guidance_scale: 7.5 },
    });
    writeFileSync(join(folder, "atelier.json"), JSON.stringify({ defaults: { steps: "many" } }));
    await expect(manifestOf(folder)).rejects.toThrow("atelier.json: defaults.steps:");
    writeFileSync(join(folder, "atelier.json"), "{");
    await expect(manifestOf(folder)).rejects.toThrow("atelier.json: the file: expected JSON");
  });
});
