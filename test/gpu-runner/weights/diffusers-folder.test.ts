import { cpSync, renameSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { describe, expect, test } from "vitest";
import { inspectModel } from "../../../gpu-runner/inspect.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { openTaesd } from "../../../gpu-runner/models/taesd.ts";
import { checkTextEncoderConfig, checkVaeConfig, readUnetConfig } from "../../../gpu-runner/weights/configs.ts";
import { ModelError } from "../../../gpu-runner/weights/model-error.ts";
import type { TensorToWrite } from "../../../gpu-runner/weights/safetensors-write.ts";
import { copyModel, describeModel, editJson, editWeights, goldenModel, goldens, widenWeights } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

const files = {
  unet: "unet/diffusion_pytorch_model.safetensors",
  vae: "vae/diffusion_pytorch_model.safetensors",
  textEncoder: "text_encoder/model.safetensors",
};

async function loadError(folder: string): Promise<unknown> {
  try {
    await (await loadDiffusionModel(folder, { provider: "cpu", cacheDir: temporaryFolder() })).release();
  } catch (error) {
    return error;
  }
  throw new Error(`${folder} was accepted`);
}

async function loadedShapes(path: string): Promise<unknown> {
  const model = await loadDiffusionModel(path, { provider: "cpu", cacheDir: temporaryFolder() });
  await model.release();
  return model.weightShapes;
}

describe("configs", () => {
  test("absent keys have the reference's defaults: diffusers' own UNet, VAE and transformers' CLIP", () => {
    const empty = join(temporaryFolder(), "config.json");
    writeFileSync(empty, "{}");
    const unet = readUnetConfig(empty);
    expect(unet).toMatchObject({
      sampleSize: [64, 64],
      inChannels: 4,
      outChannels: 4,
      crossAttentionDim: 1280,
      groups: 32,
      epsilon: 1e-5,
      flipSinToCos: true,
    });
    expect(
      unet.levels.map(level => [level.channels, level.layers, level.heads, level.transformerLayers, level.downAttends, level.upAttends]),
    ).toEqual([
      [320, 2, 8, 1, true, true],
      [640, 2, 8, 1, true, true],
      [1280, 2, 8, 1, true, true],
      [1280, 2, 8, 1, false, false],
    ]);
    expect(checkVaeConfig(empty, {})).toMatchObject({
      channels: [64],
      layersPerBlock: 1,
      latentChannels: 4,
      scalingFactor: 0.18215,
      useQuantConv: true,
    });
    expect(checkTextEncoderConfig(empty, {}, { projects: true })).toMatchObject({
      width: 512,
      layers: 12,
      heads: 8,
      maxLength: 77,
      activation: "quick_gelu",
      eosTokenId: 49407,
      projectionWidth: 512,
    });
  });

  test.each([
    ["unet", "act_fn", "mish", '"silu" or "swish" or "gelu" or "quick_gelu"', '"mish"'],
    ["unet", "class_embed_type", "timestep", "null", '"timestep"'],
    ["unet", "addition_embed_type", "image", 'null or "text_time"', '"image"'],
    ["unet", "addition_embed_type", "text_time", "a width, since addition_embed_type is text_time", "null"],
    ["unet", "mid_block_type", "UNetMidBlock2D", '"UNetMidBlock2DCrossAttn"', '"UNetMidBlock2D"'],
    ["unet", "resnet_time_scale_shift", "scale_shift", '"default"', '"scale_shift"'],
    ["unet", "center_input_sample", true, "false", "true"],
    ["unet", "attention_head_dim", [1, 2], "one number or 4", "[1,2]"],
    ["unet", "attention_head_dim", 3, "a divisor of 8", "3"],
    ["unet", "norm_num_groups", 5, "a divisor of 8", "5"],
    ["unet", "block_out_channels", [8, 8, 16], "3 as in block_out_channels", "4"],
    ["unet", "cross_attention_dim", 32, "24, the text encoder's hidden_size", "32"],
    ["vae", "latents_mean", [0], "null", "[0]"],
    ["vae", "norm_num_groups", 3, "a divisor of 4", "3"],
    ["unet", "layers_per_block", 1e9, "Too big: expected number to be <=256", "1000000000"],
    ["text_encoder", "num_hidden_layers", 1e9, "Too big: expected number to be <=256", "1000000000"],
    ["text_encoder", "num_attention_heads", 5, "a divisor of 24", "5"],
    ["text_encoder", "hidden_act", "relu", '"silu" or "swish" or "gelu" or "quick_gelu"', '"relu"'],
  ])("%s: %s = %j is refused by name", async (component, key, value, expected, got) => {
    const folder = copyModel();
    const file = join(folder, component, "config.json");
    editJson(file, { [key]: value });
    const named = key === "block_out_channels" ? "down_block_types" : value === "text_time" ? "addition_time_embed_dim" : key;
    expect(await loadError(folder)).toMatchObject({ name: "ModelError", file, key: named, expected, got });
  });

  test("a block of another architecture is refused by its place", async () => {
    const folder = copyModel();
    editJson(join(folder, "unet/config.json"), {
      down_block_types: ["CrossAttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    });
    expect(await loadError(folder)).toMatchObject({
      key: "down_block_types.1",
      expected: '"CrossAttnDownBlock2D" or "DownBlock2D"',
      got: '"AttnDownBlock2D"',
    });
  });
});

describe("folders", () => {
  test("another component, a missing file, JSON that is none: one sentence with file and key", async () => {
    const folder = copyModel();
    const index = join(folder, "model_index.json");
    const expected = "CLIPTextModel or CLIPTextModelWithProjection";
    editJson(index, { text_encoder: ["transformers", "T5EncoderModel"] });
    expect(await loadError(folder)).toMatchObject({ file: index, key: "text_encoder", expected, got: "T5EncoderModel" });
    editJson(index, { text_encoder: [null, null] });
    expect(await loadError(folder)).toMatchObject({ file: index, key: "text_encoder", expected, got: "null" });
    editJson(index, { text_encoder: ["transformers", "CLIPTextModel"], vae: ["diffusers", "AutoencoderDC"] });
    expect(await loadError(folder)).toMatchObject({ file: index, key: "vae", expected: "AutoencoderKL", got: "AutoencoderDC" });
    editJson(index, { vae: ["diffusers", "AutoencoderKL"] });
    rmSync(join(folder, "vae/config.json"));
    writeFileSync(index, "{");
    expect(await loadError(folder)).toMatchObject({ file: index, key: "file", expected: "readable JSON" });
    expect(await loadError(join(folder, "absent"))).toBeInstanceOf(ModelError);
  });

  test("numbers that Python writes and JSON lacks are read as no limit", async () => {
    const folder = copyModel();
    const file = join(folder, "scheduler/scheduler_config.json");
    writeFileSync(
      file,
      '{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "x": [NaN, "a \\" NaN, Infinity"]}',
    );
    expect((await describeModel(folder)).schedulerConfig).toMatchObject({ lambda_min_clipped: null, x: [null, 'a " NaN, Infinity'] });
  });

  test("a config that ends within a text is refused at once", async () => {
    const folder = copyModel();
    const file = join(folder, "scheduler/scheduler_config.json");
    writeFileSync(file, '\\"'.repeat(100_000));
    const began = performance.now();
    expect(await loadError(folder)).toMatchObject({ file, key: "file", expected: "readable JSON" });
    expect(performance.now() - began).toBeLessThan(1000);
  });

  test("weights are found under the half-precision name where the plain one is absent", async () => {
    const folder = copyModel();
    renameSync(join(folder, files.unet), join(folder, "unet/diffusion_pytorch_model.fp16.safetensors"));
    const model = await loadDiffusionModel(folder, { provider: "cpu", cacheDir: temporaryFolder() });
    expect(model.weightShapes).toEqual(await loadedShapes(goldenModel));
    await model.release();
    rmSync(join(folder, "unet/diffusion_pytorch_model.fp16.safetensors"));
    expect(await loadError(folder)).toMatchObject({ file: join(folder, "unet"), key: "weights", got: "neither" });
  });

  test("a hub cache's symbolic links are followed", async () => {
    const folder = copyModel();
    widenWeights(join(folder, files.vae));
    renameSync(join(folder, files.vae), join(folder, "blob"));
    symlinkSync("../blob", join(folder, files.vae));
    const model = await loadDiffusionModel(folder, { provider: "cpu", cacheDir: temporaryFolder() });
    expect((await model.decodeLatents({ data: new Float32Array(4), shape: [1, 4, 1, 1] })).shape).toEqual([1, 3, 8, 8]);
    await model.release();
  });

  test("description of the reference model", async () => {
    expect(await describeModel(goldenModel)).toMatchObject({
      hash: expect.stringMatching(/^sha256:[0-9a-f]{64}$/),
      family: "sd1",
      predictionType: "epsilon",
      latentChannels: 4,
      vaeScaleFactor: 8,
      defaultWidth: 64,
      defaultHeight: 64,
      unetInputChannels: 4,
      crossAttentionDim: 24,
      vae: { scalingFactor: 0.18215 },
      layout: "diffusers",
      tasks: ["text-to-image", "image-to-image", "inpaint"],
      addedConditions: null,
      readsGuidance: false,
      textEncoders: [{ component: "textEncoder", width: 24, maxLength: 77, layers: 3, vocabularySize: 1214, projectionWidth: null }],
      tokenizers: [{ folder: join(goldenModel, "tokenizer"), pad: null, maxLength: 77 }],
      schedulerConfig: { _class_name: "PNDMScheduler", steps_offset: 1 },
    });
  });

  test("the hash follows content, not place; any file that determines a picture changes it", async () => {
    const folder = copyModel();
    const { hash } = await describeModel(goldenModel);
    expect((await describeModel(folder)).hash).toBe(hash);
    expect((await describeModel(`${relative(".", folder)}/`)).hash).toBe(hash);
    writeFileSync(join(folder, "README.md"), "about");
    expect((await describeModel(folder)).hash).toBe(hash);
    const changed = new Set([hash]);
    editWeights(join(folder, files.vae), tensors =>
      tensors.map((tensor, i) => (i === 0 ? { ...tensor, data: () => [new Uint8Array(24)] } : tensor)),
    );
    changed.add((await describeModel(folder)).hash);
    editJson(join(folder, "scheduler/scheduler_config.json"), { prediction_type: "v_prediction" });
    changed.add((await describeModel(folder)).hash);
    editJson(join(folder, "tokenizer/tokenizer_config.json"), { model_max_length: 40 });
    changed.add((await describeModel(folder)).hash);
    expect(changed.size).toBe(4);
    expect(await describeModel(folder)).toMatchObject({ predictionType: "v_prediction", tokenizers: [{ maxLength: 40 }] });
    editJson(join(folder, "scheduler/scheduler_config.json"), { prediction_type: "flow" });
    await expect(describeModel(folder)).rejects.toMatchObject({ key: "prediction_type", got: '"flow"' });
  });
});

describe("keys of weight files", () => {
  test.each([
    ["unet", "mid_block.attentions.0.proj_in.weight", "a tensor [16,16,1,1]"],
    ["vae", "decoder.conv_in.bias", "a tensor [12]"],
    ["textEncoder", "embeddings.token_embedding.weight", "a tensor [1214,24]"],
  ] as const)("a missing one is named: %s %s", async (component, key, expected) => {
    const folder = copyModel();
    editWeights(join(folder, files[component]), tensors => tensors.filter(({ name }) => name !== key && name !== `text_model.${key}`));
    expect(await loadError(folder)).toMatchObject({ name: "ModelError", key, expected, got: "none" });
  });

  test.each([
    ["unet", "conv_out.bias"],
    ["vae", "encoder.conv_out.weight"],
    ["textEncoder", "text_model.final_layer_norm.weight"],
  ] as const)("a misshapen one is named: %s %s", async (component, key) => {
    const folder = copyModel();
    editWeights(join(folder, files[component]), tensors =>
      tensors.map(tensor => (tensor.name === key ? { ...tensor, shape: [1, ...tensor.shape] } : tensor)),
    );
    expect(await loadError(folder)).toMatchObject({
      name: "ModelError",
      key,
      expected: expect.stringMatching(/^shape \[/),
      got: expect.stringMatching(/^\[1,/),
    });
  });

  test.each(["unet", "vae", "textEncoder"] as const)("an unused one is named: %s", async component => {
    const folder = copyModel();
    editWeights(join(folder, files[component]), tensors => [
      ...tensors,
      { name: "more.weight", dtype: "F16", shape: [2], data: () => [new Uint8Array(4)] },
    ]);
    expect(await loadError(folder)).toMatchObject({ key: "more.weight", expected: "every key to be used", got: "an unused key" });
  });

  test("both layouts of CLIP and of the autoencoder's attention load to the same numbers; position_ids is passed over", async () => {
    const folder = copyModel();
    const positions = { name: "embeddings.position_ids", dtype: "I64" as const, shape: [1, 77], data: () => [new Uint8Array(77 * 8)] };
    editWeights(join(folder, files.textEncoder), tensors => [
      ...tensors.map(tensor => ({ ...tensor, name: tensor.name.replace(/^text_model\./, "") })),
      positions,
    ]);
    const now = { query: "to_q", key: "to_k", value: "to_v", proj_attn: "to_out.0" } as const;
    const renamed = (name: string): string =>
      name.replace(/\.(query|key|value|proj_attn)\./, (_, old: keyof typeof now) => `.${now[old]}.`);
    editWeights(join(folder, files.vae), tensors => tensors.map(tensor => ({ ...tensor, name: renamed(tensor.name) })));
    const outputs = [];
    for (const path of [goldenModel, folder]) {
      const model = await loadDiffusionModel(path, { provider: "cpu", cacheDir: temporaryFolder() });
      const { pooled } = await model.encodeText({ encoder: 0, inputIds: [[3, 5, 8, 13]] });
      const sample = await model.decodeLatents({ data: new Float32Array(16).fill(0.5), shape: [1, 4, 2, 2] });
      outputs.push([pooled, sample]);
      await model.release();
    }
    expect(outputs[1]).toEqual(outputs[0]);
  });

  test("a truncated weight file is refused when the model is loaded", async () => {
    const folder = copyModel();
    const whole = join(goldenModel, files.unet);
    cpSync(whole, join(folder, files.unet));
    truncateSync(join(folder, files.unet), 100_000);
    expect(await loadError(folder)).toMatchObject({ name: "SafetensorsError", key: "file", got: "100000 bytes" });
  });
});

describe("shards", () => {
  const sharded = join(goldens, "../families/models/edit");
  const list = "unet/diffusion_pytorch_model.safetensors.index.json";
  const copyShards = (): string => {
    const folder = join(temporaryFolder(), "model");
    cpSync(sharded, folder, { recursive: true });
    return folder;
  };

  test("their list decides which files are read and hashed, under both of its names", async () => {
    const folder = copyShards();
    const { hash } = await describeModel(sharded);
    renameSync(join(folder, list), join(folder, "unet/diffusion_pytorch_model.safetensors.index.fp16.json"));
    const renamed = await describeModel(folder);
    expect(renamed).toMatchObject({ family: "sd1", tasks: ["edit"], unetInputChannels: 8 });
    expect(renamed.hash).not.toBe(hash);
    const { parts } = await inspectModel(folder);
    expect(parts.map(({ component, precisions }) => [component, Object.keys(precisions)])).toEqual([
      ["unet", ["BF16"]],
      ["vae", ["F64"]],
      ["textEncoder", ["F32"]],
    ]);
  });

  test.each(["../text_encoder/model.safetensors", "/etc/passwd.safetensors", "a\\b.safetensors", ".hidden.safetensors", "weights.bin"])(
    "a list that names %s is refused",
    async name => {
      const folder = copyShards();
      editJson(join(folder, list), { weight_map: { "conv_in.weight": name } });
      const expected = "a .safetensors file beside this one";
      expect(await loadError(folder)).toMatchObject({ name: "ModelError", file: join(folder, list), expected, got: JSON.stringify(name) });
    },
  );

  test("a shard that is not there, a key that stands in two, one that stands in none", async () => {
    const folder = copyShards();
    const [first, second] = ["00001", "00002"].map(n => join(folder, `unet/diffusion_pytorch_model-${n}-of-00002.safetensors`));
    const key = "conv_in.bias";
    editWeights(second!, tensors => [...tensors, { name: key, dtype: "BF16", shape: [8], data: () => [new Uint8Array(16)] }]);
    expect(await loadError(folder)).toMatchObject({ file: second, key, expected: `one key for ${key}`, got: `${key} as well` });
    editWeights(second!, tensors => tensors.filter(({ name }) => name !== key));
    editWeights(first!, tensors => tensors.filter(({ name }) => name !== key));
    expect(await loadError(folder)).toMatchObject({ key, expected: "a tensor [8]", got: "none" });
    rmSync(first!);
    expect(await loadError(folder)).toMatchObject({
      file: join(folder, list),
      key: "diffusion_pytorch_model-00001-of-00002.safetensors",
      expected: "a shard beside this file",
    });
  });
});

describe("preview decoders", () => {
  const original = join(goldens, "../families/single/refiner.preview.safetensors");
  const open = (change: (tensors: TensorToWrite[]) => TensorToWrite[]) => {
    const file = join(temporaryFolder(), "taesd.safetensors");
    cpSync(original, file);
    editWeights(file, change);
    return openTaesd(file, temporaryFolder());
  };
  const half = (name: string, shape: number[]): TensorToWrite => ({
    name,
    dtype: "F16",
    shape,
    data: () => [new Uint8Array(2 * shape.reduce((a, b) => a * b, 1))],
  });

  test("layers are counted from the keys; an encoder beside is passed over", () => {
    const { layers, latentChannels } = open(tensors => [...tensors, half("encoder.0.weight", [1])]);
    expect(latentChannels).toBe(4);
    const kinds = layers.map(({ type }) => type[0]).join("");
    // Two blocks at the lowest resolution, one at each other.
    expect(kinds).toBe("crbbdcbdcbdcbc");
  });

  test("what does not fit is refused by its key", () => {
    expect(() => open(tensors => tensors.filter(({ name }) => name !== "1.weight"))).toThrow("1.weight: expected a TAESD decoder's first");
    expect(() => open(tensors => [...tensors, half("more", [1])])).toThrow("more: expected every key to be used, got an unused key");
    expect(() => open(tensors => tensors.filter(({ name }) => name !== "3.conv.2.bias"))).toThrow(
      "3.conv.2.bias: expected shape [6], got none",
    );
    const last = "14.weight";
    expect(() => open(tensors => tensors.filter(({ name }) => !name.startsWith("14.")))).toThrow("a last convolution to 3 colours, got 6");
    expect(() => open(tensors => tensors.map(tensor => (tensor.name === last ? half(last, [3, 5, 3, 3]) : tensor)))).toThrow(
      "14.weight: expected shape [3,6,3,3], got [3,5,3,3]",
    );
  });
});
