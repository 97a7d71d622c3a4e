/**
 * Configs of the published bases in diffusers' form, for single files, which hold none: chosen by widths and keys. From the
 * config.json files of stable-diffusion-v1-5, stable-diffusion-2(-1)(-base), stable-diffusion-xl-base-1.0 and -refiner-1.0.
 */
import type { ModelFamily } from "../../shared/model.ts";

type Json = Readonly<Record<string, unknown>>;

export interface StandardConfigs {
  unet: Json;
  vae: Json;
  /** By the slot of the text encoder. */
  textEncoder?: Json;
  textEncoder2?: Json;
  scheduler: Json;
  forceZerosForEmptyPrompt: boolean;
}

const vae = (scalingFactor: number): Json => ({
  block_out_channels: [128, 256, 512, 512],
  down_block_types: Array<string>(4).fill("DownEncoderBlock2D"),
  up_block_types: Array<string>(4).fill("UpDecoderBlock2D"),
  layers_per_block: 2,
  scaling_factor: scalingFactor,
});

const vitL: Json = {
  hidden_size: 768,
  intermediate_size: 3072,
  num_hidden_layers: 12,
  num_attention_heads: 12,
  hidden_act: "quick_gelu",
};
/** OpenCLIP's ViT-H/14 without its last layer. */
const vitH: Json = { hidden_size: 1024, intermediate_size: 4096, num_hidden_layers: 23, num_attention_heads: 16, hidden_act: "gelu" };
const vitBigG: Json = {
  hidden_size: 1280,
  intermediate_size: 5120,
  num_hidden_layers: 32,
  num_attention_heads: 20,
  hidden_act: "gelu",
  projection_dim: 1280,
};

const betas: Json = { beta_start: 0.00085, beta_end: 0.012, beta_schedule: "scaled_linear", num_train_timesteps: 1000, steps_offset: 1 };
const euler: Json = { _class_name: "EulerDiscreteScheduler", ...betas, timestep_spacing: "leading", interpolation_type: "linear" };

/** All but `in_channels`, `sample_size` and `prediction_type`, which a file's keys tell. */
export const standardConfigs = {
  sd1: {
    unet: { cross_attention_dim: 768, attention_head_dim: 8 },
    vae: vae(0.18215),
    textEncoder: vitL,
    scheduler: { _class_name: "PNDMScheduler", ...betas, skip_prk_steps: true, set_alpha_to_one: false, clip_sample: false },
    forceZerosForEmptyPrompt: false,
  },
  sd2: {
    unet: { cross_attention_dim: 1024, attention_head_dim: [5, 10, 20, 20], use_linear_projection: true },
    vae: vae(0.18215),
    textEncoder: vitH,
    scheduler: { _class_name: "DDIMScheduler", ...betas, set_alpha_to_one: false, clip_sample: false },
    forceZerosForEmptyPrompt: false,
  },
  sdxl: {
    unet: {
      down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
      up_block_types: ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
      block_out_channels: [320, 640, 1280],
      cross_attention_dim: 2048,
      transformer_layers_per_block: [1, 2, 10],
      attention_head_dim: [5, 10, 20],
      use_linear_projection: true,
      addition_embed_type: "text_time",
      addition_time_embed_dim: 256,
      projection_class_embeddings_input_dim: 2816,
    },
    vae: vae(0.13025),
    textEncoder: vitL,
    textEncoder2: vitBigG,
    scheduler: euler,
    forceZerosForEmptyPrompt: true,
  },
  "sdxl-refiner": {
    unet: {
      down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
      up_block_types: ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
      block_out_channels: [384, 768, 1536, 1536],
      cross_attention_dim: 1280,
      transformer_layers_per_block: 4,
      attention_head_dim: [6, 12, 24, 24],
      use_linear_projection: true,
      addition_embed_type: "text_time",
      addition_time_embed_dim: 256,
      projection_class_embeddings_input_dim: 2560,
    },
    vae: vae(0.13025),
    textEncoder2: vitBigG,
    scheduler: euler,
    forceZerosForEmptyPrompt: false,
  },
} as const satisfies Record<ModelFamily, StandardConfigs>;
