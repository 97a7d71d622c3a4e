/** Single files: what is found by keys and widths, what a file of configs beside them says, what they hold besides. */
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { inspectModel } from "../../../gpu-runner/inspect.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { buildModelGraphs } from "../../../gpu-runner/models/model-graphs.ts";
import { openModel } from "../../../gpu-runner/weights/model-source.ts";
import { SafetensorsFile } from "../../../gpu-runner/weights/safetensors.ts";
import { bytesOf, type TensorToWrite, writeSafetensors } from "../../../gpu-runner/weights/safetensors-write.ts";
import { describeModel, goldens } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

const families = join(goldens, "../families/single");

/** A single file of a few tensors that tell what it is; the rest of a real one takes gigabytes. */
function sketch(tensors: Record<string, readonly number[]>, values: Record<string, (index: number) => number> = {}): string {
  const file = join(temporaryFolder(), "sketch.safetensors");
  const write = Object.entries(tensors).map(([name, shape]): TensorToWrite => {
    const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => values[name]?.(i) ?? 0);
    return { name, dtype: "F32", shape, data: () => [bytesOf(data)] };
  });
  writeSafetensors(file, write);
  return file;
}

const unet = (channels: number, width: number): Record<string, readonly number[]> => ({
  "model.diffusion_model.input_blocks.0.0.weight": [1, channels, 1, 1],
  "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [1, width],
});
const clip = { "cond_stage_model.transformer.text_model.final_layer_norm.bias": [1] };
const openClip = { "cond_stage_model.model.ln_final.bias": [1] };
const norm = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";

describe("without configs the family follows from widths and keys", () => {
  const xl = {
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": [1],
    "conditioner.embedders.1.model.ln_final.bias": [1],
  };
  test.each([
    ["sd1", { ...unet(4, 768), ...clip }, { inChannels: 4, sampleSize: [64, 64] }, [768], [null]],
    ["sd1", { ...unet(9, 768), ...clip }, { inChannels: 9 }, [768], [null]],
    ["sd2", { ...unet(4, 1024), ...openClip }, { inChannels: 4, sampleSize: [64, 64] }, [1024], ["!"]],
    ["sdxl", { ...unet(4, 2048), ...xl }, { inChannels: 4, sampleSize: [128, 128] }, [768, 1280], [null, "!"]],
    ["sdxl", { ...unet(8, 2048), ...xl }, { inChannels: 8 }, [768, 1280], [null, "!"]],
    ["sdxl-refiner", { ...unet(4, 1280), "conditioner.embedders.0.model.ln_final.bias": [1] }, { crossAttentionDim: 1280 }, [1280], ["!"]],
  ] as const)("%s %#", (family, tensors, expected, widths, pads) => {
    const source = openModel(sketch(tensors));
    expect(source.family).toBe(family);
    expect(source.unet).toMatchObject(expected);
    expect(source.textEncoders.map(({ config }) => config.width)).toEqual(widths);
    expect(source.tokenizers.map(({ pad }) => pad)).toEqual(pads);
  });

  test("the refiner reads five time ids and an aesthetic score", async () => {
    const refiner = sketch({ ...unet(4, 1280), "conditioner.embedders.0.model.ln_final.bias": [1] });
    expect(await describeModel(refiner)).toMatchObject({
      tasks: ["image-to-image", "inpaint"],
      addedConditions: { timeIds: 5, requiresAestheticsScore: true, forceZerosForEmptyPrompt: false },
      textEncoders: [{ component: "textEncoder2", projectionWidth: 1280 }],
    });
  });

  test.each([
    ["epsilon", "sd2", { ...unet(4, 1024), ...openClip, [norm]: [8] }, 0.05, 64],
    ["v_prediction", "sd2", { ...unet(4, 1024), ...openClip, [norm]: [8] }, 0.2, 96],
    ["epsilon", "an inpainting sd2", { ...unet(9, 1024), ...openClip, [norm]: [8] }, 0.2, 64],
    ["epsilon", "sd1", { ...unet(4, 768), ...clip, [norm]: [8] }, 0.2, 64],
    ["v_prediction", "a marked sd1", { ...unet(4, 768), ...clip, v_pred: [1] }, 0, 64],
  ] as const)("%s of %s by its marks", async (predictionType, _, tensors, spread, size) => {
    const path = sketch(tensors, { [norm]: i => (i % 2 === 0 ? spread : -spread) });
    expect(await describeModel(path)).toMatchObject({ predictionType, defaultWidth: size * 8 });
  });

  test("a file that ends its noise at zero signal says so; what is said beside it goes before its marks", async () => {
    const path = sketch({ ...unet(4, 768), ...clip, v_pred: [1], ztsnr: [1] });
    expect((await describeModel(path)).schedulerConfig).toMatchObject({ rescale_betas_zero_snr: true, timestep_spacing: "trailing" });
    writeFileSync(
      path.replace(".safetensors", ".json"),
      JSON.stringify({ prediction_type: "epsilon", "activation text": "of another program" }),
    );
    expect(await describeModel(path)).toMatchObject({ predictionType: "epsilon" });
  });

  test("the geometry of every standard config builds: their parameters are those of the published models", () => {
    const parameters = (tensors: Record<string, readonly number[]>): Record<string, number> => {
      const counts: Record<string, number> = {};
      buildModelGraphs(openModel(sketch(tensors)), part => {
        const seen = new Map<string, number>();
        return {
          take(name, shape) {
            const elements = shape.reduce((a, b) => a * b, 1);
            seen.set(name, elements);
            counts[`${part}/${name}`] = elements;
            return { key: name, file: "none", offset: 0, byteLength: 4 * elements, shape };
          },
        };
      });
      const sums: Record<string, number> = {};
      for (const [key, count] of Object.entries(counts)) sums[key.split("/")[0]!] = (sums[key.split("/")[0]!] ?? 0) + count;
      return sums;
    };
    // As diffusers and transformers count them.
    expect(parameters({ ...unet(4, 768), ...clip })).toEqual({ unet: 859_520_964, vae: 83_653_863, textEncoder: 123_060_480 });
    expect(parameters({ ...unet(4, 1024), ...openClip })).toMatchObject({ unet: 865_910_724, textEncoder: 340_387_840 });
    expect(parameters({ ...unet(4, 2048), ...xl })).toMatchObject({ unet: 2_567_463_684, textEncoder2: 694_659_840 });
    expect(parameters({ ...unet(4, 1280), "conditioner.embedders.0.model.ln_final.bias": [1] })).toMatchObject({ unet: 2_259_526_660 });
  });

  test.each([
    [unet(4, 900), clip, "attn2.to_k.weight", "a width of 768, 1024, 2048, 1280, or a .json file of configs beside it", "[1,900]"],
    [{}, clip, "model.diffusion_model.", "a UNet with cross-attention at this prefix", "none"],
    [unet(4, 768), {}, "cond_stage_model.", "a text encoder here or at conditioner.embedders.", "none"],
    [unet(4, 768), { ...clip, ...openClip }, "cond_stage_model.transformer.", "one text encoder in each place", "2 of them"],
    [unet(4, 768), openClip, "missing", "", ""],
  ])("what cannot be told is refused %#", async (unetKeys, encoder, key, expected, got) => {
    const load = () => inspectModel(sketch({ ...unetKeys, ...encoder }));
    if (key !== "missing") {
      await expect(load()).rejects.toMatchObject({ name: "ModelError", key: expect.stringContaining(key), expected, got });
      return;
    }
    const inspection = await load();
    expect(inspection.sound).toBe(false);
    expect(inspection.parts.find(({ component }) => component === "unet")!.problems.length).toBeGreaterThan(600);
  });
});

describe("keys of whole files", () => {
  test("what a file holds besides is passed over with a reason; the tensors of every part are told by precision", async () => {
    const inspection = await inspectModel(join(families, "consistency.safetensors"));
    expect(inspection.sound).toBe(true);
    expect(inspection.description).toMatchObject({ readsGuidance: true, layout: "single-file", family: "sd1" });
    expect(inspection.unused).toEqual([]);
    expect(inspection.skipped).toEqual({
      "a second copy of the UNet: the running mean of its training": expect.toSatisfy((keys: string[]) => keys.length === 6),
      "a buffer that counts from 0": ["cond_stage_model.transformer.embeddings.position_ids"],
      "computed from the noise schedule": ["alphas_cumprod", "posterior_variance"],
      "training state": ["global_step"],
    });
    for (const { parameters, precisions, problems } of inspection.parts) {
      expect(precisions).toEqual({ F16: parameters });
      expect(problems).toEqual([]);
    }
    expect(inspection.parameters).toBe(inspection.parts.reduce((sum, part) => sum + part.parameters, 0));
  });

  test("a last layer that Stable Diffusion 2 does not run is told; one that SDXL has too many is an error", async () => {
    const { skipped } = await inspectModel(join(goldens, "single/sd21.safetensors"));
    expect(skipped["a layer that this base does not run"]).toHaveLength(12);
    expect(skipped["this base reads the text unprojected"]).toEqual(["cond_stage_model.model.text_projection"]);
    const { unused } = await inspectEdited("xl-inpaint", tensors => [
      ...tensors,
      {
        name: "conditioner.embedders.1.model.transformer.resblocks.3.ln_1.bias",
        dtype: "F32",
        shape: [16],
        data: () => [new Uint8Array(64)],
      },
    ]);
    expect(unused).toEqual(["conditioner.embedders.1.model.transformer.resblocks.3.ln_1.bias"]);
  });

  test("unknown, missing and misshapen keys are named, all of them, and keep the file from being loaded", async () => {
    const edited = edit("consistency", tensors => [
      ...tensors.filter(({ name }) => name !== "first_stage_model.decoder.conv_in.bias"),
      { name: "model.diffusion_model.input_blocks.99.0.weight", dtype: "F16", shape: [1], data: () => [new Uint8Array(2)] },
      { name: "lora_unet.weight", dtype: "F16", shape: [1], data: () => [new Uint8Array(2)] },
    ]);
    const inspection = await inspectModel(edited);
    expect(inspection.unused).toEqual(["model.diffusion_model.input_blocks.99.0.weight", "lora_unet.weight"]);
    expect(inspection.parts.flatMap(({ problems }) => problems)).toEqual(["decoder.conv_in.bias: expected a tensor [8], got none"]);
    expect(inspection.sound).toBe(false);
    const load = loadDiffusionModel(edited, { provider: "cpu", cacheDir: temporaryFolder() });
    await expect(load).rejects.toMatchObject({ name: "ModelError", key: "decoder.conv_in.bias", expected: "a tensor [8]", got: "none" });
  });

  test("a text projection counts the same turned, as some files hold it", async () => {
    const key = "conditioner.embedders.1.model.text_projection";
    const from = SafetensorsFile.open(join(families, "xl-inpaint.safetensors"));
    const values = from.readFloat32(key);
    from.close();
    const turned = values.map((_, i) => values[(i % 16) * 16 + Math.floor(i / 16)]!);
    const other = edit("xl-inpaint", tensors =>
      tensors.map(tensor => (tensor.name === key ? { ...tensor, name: `${key}.weight`, data: () => [bytesOf(turned)] } : tensor)),
    );
    const pooled = [];
    for (const path of [join(families, "xl-inpaint.safetensors"), other]) {
      const model = await loadDiffusionModel(path, { provider: "cpu", cacheDir: temporaryFolder(), threads: 1 });
      pooled.push((await model.encodeText({ encoder: 1, inputIds: [[62, 3, 5, 63]] })).pooled);
      await model.release();
    }
    expect(pooled[1]).toEqual(pooled[0]);
  });

  test("a joint projection that does not part into three is refused by its key", async () => {
    const key = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias";
    const cut = inspectEdited("xl-inpaint", tensors =>
      tensors.map(tensor => (tensor.name === key ? { ...tensor, shape: [47], data: () => [new Uint8Array(47 * 4)] } : tensor)),
    );
    await expect(cut).rejects.toMatchObject({ key, expected: "a first axis of 3 equal pieces", got: "[47]" });
  });

  test("two keys of one tensor are refused", async () => {
    const twice = inspectEdited("consistency", tensors => [
      ...tensors,
      {
        name: "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        dtype: "F16",
        shape: [12],
        data: () => [new Uint8Array(24)],
      },
    ]);
    await expect(twice).rejects.toMatchObject({ expected: "one key for final_layer_norm.bias" });
  });

  test("the hash follows the file and its configs, not its name", async () => {
    const copy = edit("refiner", tensors => tensors);
    const { hash } = await describeModel(copy);
    const moved = join(temporaryFolder(), "other.safetensors");
    cpSync(copy, moved);
    cpSync(copy.replace(".safetensors", ".json"), moved.replace(".safetensors", ".json"));
    expect((await describeModel(moved)).hash).toBe(hash);
    const configs = JSON.parse(readFileSync(copy.replace(".safetensors", ".json"), "utf8"));
    writeFileSync(moved.replace(".safetensors", ".json"), JSON.stringify({ ...configs, prediction_type: "v_prediction" }));
    const changed = await describeModel(moved);
    expect(changed.predictionType).toBe("v_prediction");
    expect(changed.hash).not.toBe(hash);
  });

  test("configs beside a file are checked by their place", async () => {
    const copy = edit("refiner", tensors => tensors);
    const beside = copy.replace(".safetensors", ".json");
    const configs = JSON.parse(readFileSync(beside, "utf8"));
    writeFileSync(beside, JSON.stringify({ ...configs, unet: { ...configs.unet, act_fn: "mish" } }));
    await expect(inspectModel(copy)).rejects.toMatchObject({ file: `${beside}#unet`, key: "act_fn", got: '"mish"' });
    writeFileSync(beside, JSON.stringify({ unet: configs.unet }));
    await expect(inspectModel(copy)).rejects.toMatchObject({ file: beside, key: "vae", got: "none" });
  });
});

/** A copy of a reference file with its list of tensors changed, and its configs. */
function edit(name: string, change: (tensors: TensorToWrite[]) => TensorToWrite[]): string {
  const [from, to] = [join(families, name), join(temporaryFolder(), name)];
  const file = SafetensorsFile.open(`${from}.safetensors`);
  const tensors = [...file.entries.values()].map(
    ({ name, dtype, shape }): TensorToWrite => ({ name, dtype, shape, data: () => [file.readBytes(name)] }),
  );
  writeSafetensors(`${to}.safetensors`, change(tensors));
  file.close();
  cpSync(`${from}.json`, `${to}.json`);
  return `${to}.safetensors`;
}

function inspectEdited(name: string, change: (tensors: TensorToWrite[]) => TensorToWrite[]) {
  return inspectModel(edit(name, change));
}
