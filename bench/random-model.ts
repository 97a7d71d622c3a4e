/** A diffusers folder of published geometry with random weights: as large and as slow as the real one. */
import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildVaeDecoder, buildVaeEncoder } from "../gpu-runner/models/autoencoder-kl.ts";
import { buildTextEncoder } from "../gpu-runner/models/clip-text.ts";
import { buildUnet } from "../gpu-runner/models/unet.ts";
import { readTextEncoderConfig, readUnetConfig, readVaeConfig } from "../gpu-runner/weights/configs.ts";
import { writeRandomWeights } from "../gpu-runner/weights/random-weights.ts";
import type { Options } from "./options.ts";

/** `unet/config.json` of Stable Diffusion 1.5, where it differs from the reference's defaults. */
const stableDiffusion15 = { _class_name: "UNet2DConditionModel", sample_size: 64, cross_attention_dim: 768, attention_head_dim: 8 };

const vae = {
  _class_name: "AutoencoderKL",
  block_out_channels: [128, 256, 512, 512],
  down_block_types: Array(4).fill("DownEncoderBlock2D"),
  up_block_types: Array(4).fill("UpDecoderBlock2D"),
  layers_per_block: 2,
};
const textEncoder = { model_type: "clip_text_model", hidden_size: 768, intermediate_size: 3072, num_attention_heads: 12, eos_token_id: 2 };
const modelIndex = {
  _class_name: "StableDiffusionPipeline",
  unet: ["diffusers", "UNet2DConditionModel"],
  vae: ["diffusers", "AutoencoderKL"],
  text_encoder: ["transformers", "CLIPTextModel"],
  tokenizer: ["transformers", "CLIPTokenizer"],
  scheduler: ["diffusers", "PNDMScheduler"],
};
const scheduler = {
  _class_name: "PNDMScheduler",
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  skip_prk_steps: true,
};

/** Writes a UNet's config, that of `options.unet` or Stable Diffusion 1.5's, and fp32 weights for it. Gives both files. */
export function writeUnet(folder: string, options: Pick<Options, "unet">, say: (line: string) => void): [config: string, weights: string] {
  const config = join(folder, "config.json");
  if (options.unet) copyFileSync(options.unet, config);
  else writeFileSync(config, JSON.stringify(stableDiffusion15));
  const weights = join(folder, "weights.safetensors");
  const parameters = writeRandomWeights(weights, source => buildUnet(readUnetConfig(config), source));
  say(`${(parameters / 1e6).toFixed(1)} M parameters written`);
  return [config, weights];
}

/** Writes Stable Diffusion 1.5's geometry, all parts, bf16: half the size on disk, as published weights are. Gives the count of parameters. */
export function writeStableDiffusion15(folder: string): number {
  const config = (path: string, content: unknown): string => {
    const file = join(folder, path);
    mkdirSync(join(file, ".."), { recursive: true });
    writeFileSync(file, JSON.stringify(content));
    return file;
  };
  config("model_index.json", modelIndex);
  config("scheduler/scheduler_config.json", scheduler);
  config("tokenizer/tokenizer_config.json", { tokenizer_class: "CLIPTokenizer", model_max_length: 77 });
  const [unetConfig, vaeConfig, textConfig] = [
    readUnetConfig(config("unet/config.json", stableDiffusion15)),
    readVaeConfig(config("vae/config.json", vae)),
    readTextEncoderConfig(config("text_encoder/config.json", textEncoder)),
  ];
  const unet = writeRandomWeights(
    join(folder, "unet/diffusion_pytorch_model.safetensors"),
    source => buildUnet(unetConfig, source),
    "BF16",
  );
  const autoencoder = writeRandomWeights(
    join(folder, "vae/diffusion_pytorch_model.safetensors"),
    source => {
      buildVaeEncoder(vaeConfig, source);
      buildVaeDecoder(vaeConfig, source);
    },
    "BF16",
  );
  const text = writeRandomWeights(
    join(folder, "text_encoder/model.safetensors"),
    source => {
      source.take("embeddings.token_embedding.weight", [textConfig.vocabularySize, textConfig.width]);
      source.take("embeddings.position_embedding.weight", [textConfig.maxLength, textConfig.width]);
      buildTextEncoder(textConfig, source);
    },
    "BF16",
  );
  return unet + autoencoder + text;
}
