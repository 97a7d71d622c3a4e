/**
 * Configs in diffusers' form, from a folder's config.json files or beside a single file, parsed once into what the graphs need. A key that is absent has the
 * reference's default; a setting that is not supported is an error that names key, expected and got.
 * Sources: diffusers' UNet2DConditionModel and AutoencoderKL, transformers' CLIPTextConfig.
 */
import { readFileSync } from "node:fs";
import { z } from "zod";
import { ModelError } from "./model-error.ts";

/** Activation functions by the names that configs use. */
export const activationNames = ["silu", "swish", "gelu", "quick_gelu"] as const;
export type ActivationName = (typeof activationNames)[number];

export interface UnetLevel {
  channels: number;
  layers: number;
  heads: number;
  transformerLayers: number;
  downAttends: boolean;
  /** Of the up block that mirrors this level. */
  upAttends: boolean;
}

export interface UnetConfig {
  sampleSize: readonly [number, number];
  inChannels: number;
  outChannels: number;
  /** From the highest resolution down. */
  levels: readonly UnetLevel[];
  crossAttentionDim: number;
  groups: number;
  epsilon: number;
  activation: ActivationName;
  useLinearProjection: boolean;
  flipSinToCos: boolean;
  frequencyShift: number;
  /** SDXL: pooled text and micro-conditioning, joined to `width` numbers of which each time id takes `timeWidth`; null: none. */
  added: { width: number; timeWidth: number } | null;
  /** Width of the guidance embedding that a latent consistency model reads (Luo et al. 2023); null in others. */
  guidanceWidth: number | null;
}

export interface VaeConfig {
  inChannels: number;
  outChannels: number;
  latentChannels: number;
  /** From the highest resolution down. */
  channels: readonly number[];
  layersPerBlock: number;
  groups: number;
  activation: ActivationName;
  useQuantConv: boolean;
  usePostQuantConv: boolean;
  midBlockAddAttention: boolean;
  scalingFactor: number;
}

export interface TextEncoderConfig {
  vocabularySize: number;
  width: number;
  intermediateWidth: number;
  layers: number;
  heads: number;
  maxLength: number;
  activation: ActivationName;
  epsilon: number;
  eosTokenId: number;
  /** Width of `text_embeds`, where the encoder is CLIPTextModelWithProjection; null: pooled states are used as they are. */
  projectionWidth: number | null;
}

const count = z.int().positive();
/** Far beyond any published model, so that a config from a stranger cannot make a graph without end. */
const layers = z.int().positive().max(256);
const maxLevels = 16;
const activation = z.enum(activationNames);
/** One number for all blocks, or one per block. */
const perBlock = z.union([count, z.array(count).nonempty()]);
const layersPerBlock = z.union([layers, z.array(layers).nonempty()]);

/** A setting of which only the given values are supported; the first is the default. */
function only<const T extends string | number | boolean | null>(...values: [T, ...T[]]) {
  return z.literal(values).optional();
}

const unetSchema = z.object({
  _class_name: only("UNet2DConditionModel"),
  sample_size: z.union([count, z.tuple([count, count])]).default(64),
  in_channels: count.default(4),
  out_channels: count.default(4),
  flip_sin_to_cos: z.boolean().default(true),
  freq_shift: z.number().default(0),
  down_block_types: z
    .array(z.enum(["CrossAttnDownBlock2D", "DownBlock2D"]))
    .nonempty()
    .default(["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]),
  up_block_types: z
    .array(z.enum(["UpBlock2D", "CrossAttnUpBlock2D"]))
    .nonempty()
    .default(["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]),
  block_out_channels: z.array(count).nonempty().max(maxLevels).default([320, 640, 1280, 1280]),
  layers_per_block: layersPerBlock.default(2),
  act_fn: activation.default("silu"),
  norm_num_groups: count.default(32),
  norm_eps: z.number().positive().default(1e-5),
  cross_attention_dim: count.default(1280),
  transformer_layers_per_block: layersPerBlock.default(1),
  attention_head_dim: perBlock.default(8),
  num_attention_heads: perBlock.nullish(),
  use_linear_projection: z.boolean().default(false),
  mid_block_type: only("UNetMidBlock2DCrossAttn"),
  center_input_sample: only(false),
  only_cross_attention: only(false),
  mid_block_only_cross_attention: only(null, false),
  downsample_padding: only(1),
  mid_block_scale_factor: only(1),
  resnet_out_scale_factor: only(1),
  reverse_transformer_layers_per_block: only(null),
  encoder_hid_dim: only(null),
  encoder_hid_dim_type: only(null),
  dual_cross_attention: only(false),
  class_embed_type: only(null),
  addition_embed_type: only(null, "text_time"),
  addition_time_embed_dim: count.nullish(),
  projection_class_embeddings_input_dim: count.nullish(),
  num_class_embeds: only(null),
  resnet_time_scale_shift: only("default"),
  resnet_skip_time_act: only(false),
  time_embedding_type: only("positional"),
  time_embedding_dim: only(null),
  time_embedding_act_fn: only(null),
  timestep_post_act: only(null),
  time_cond_proj_dim: count.nullish(),
  conv_in_kernel: only(3),
  conv_out_kernel: only(3),
  attention_type: only("default"),
  cross_attention_norm: only(null),
});

const vaeSchema = z.object({
  _class_name: only("AutoencoderKL"),
  in_channels: count.default(3),
  out_channels: count.default(3),
  down_block_types: z.array(z.literal("DownEncoderBlock2D")).nonempty().default(["DownEncoderBlock2D"]),
  up_block_types: z.array(z.literal("UpDecoderBlock2D")).nonempty().default(["UpDecoderBlock2D"]),
  block_out_channels: z.array(count).nonempty().max(maxLevels).default([64]),
  layers_per_block: layers.default(1),
  act_fn: activation.default("silu"),
  latent_channels: count.default(4),
  norm_num_groups: count.default(32),
  scaling_factor: z.number().positive().default(0.18215),
  // No Stable Diffusion 1 pipeline of the reference applies a shift.
  shift_factor: only(null, 0),
  use_quant_conv: z.boolean().default(true),
  use_post_quant_conv: z.boolean().default(true),
  mid_block_add_attention: z.boolean().default(true),
  latents_mean: only(null),
  latents_std: only(null),
});

const textEncoderSchema = z.object({
  model_type: only("clip_text_model"),
  vocab_size: count.default(49408),
  hidden_size: count.default(512),
  intermediate_size: count.default(2048),
  num_hidden_layers: layers.default(12),
  num_attention_heads: count.default(8),
  max_position_embeddings: count.default(77),
  hidden_act: activation.default("quick_gelu"),
  layer_norm_eps: z.number().positive().default(1e-5),
  eos_token_id: z.int().nullish(),
  projection_dim: count.default(512),
});

/** Reads `unet/config.json`. Throws ModelError. */
export function readUnetConfig(file: string): UnetConfig {
  return checkUnetConfig(file, readJson(file));
}

/** The same of what was read already; `file` is for messages. Throws ModelError. */
export function checkUnetConfig(file: string, json: unknown): UnetConfig {
  const config = checkConfig(file, json, unetSchema);
  const levelCount = config.block_out_channels.length;
  for (const key of ["down_block_types", "up_block_types"] as const)
    if (config[key].length !== levelCount)
      throw new ModelError(file, key, `${levelCount} as in block_out_channels`, String(config[key].length));
  const spread = (key: "layers_per_block" | "transformer_layers_per_block" | "attention_head_dim", value: number | number[]): number[] => {
    const values = typeof value === "number" ? Array<number>(levelCount).fill(value) : value;
    if (values.length !== levelCount) throw new ModelError(file, key, `one number or ${levelCount}`, `[${values}]`);
    return values;
  };
  const layers = spread("layers_per_block", config.layers_per_block);
  const transformerLayers = spread("transformer_layers_per_block", config.transformer_layers_per_block);
  // The reference's `attention_head_dim` is the number of heads, unless `num_attention_heads` is given too.
  const heads = spread("attention_head_dim", config.num_attention_heads ?? config.attention_head_dim);
  const levels = config.block_out_channels.map((channels, i): UnetLevel => {
    requireDivides(file, "norm_num_groups", config.norm_num_groups, channels);
    requireDivides(file, "attention_head_dim", heads[i]!, channels);
    const downAttends = config.down_block_types[i] === "CrossAttnDownBlock2D";
    const upAttends = config.up_block_types[levelCount - 1 - i] === "CrossAttnUpBlock2D";
    return { channels, layers: layers[i]!, heads: heads[i]!, transformerLayers: transformerLayers[i]!, downAttends, upAttends };
  });
  const size = config.sample_size;
  return {
    sampleSize: typeof size === "number" ? [size, size] : size,
    inChannels: config.in_channels,
    outChannels: config.out_channels,
    levels,
    crossAttentionDim: config.cross_attention_dim,
    groups: config.norm_num_groups,
    epsilon: config.norm_eps,
    activation: config.act_fn,
    useLinearProjection: config.use_linear_projection,
    flipSinToCos: config.flip_sin_to_cos,
    frequencyShift: config.freq_shift,
    added: config.addition_embed_type === "text_time" ? addedConditions(file, config) : null,
    guidanceWidth: config.time_cond_proj_dim ?? null,
  };
}

function addedConditions(file: string, config: z.output<typeof unetSchema>): NonNullable<UnetConfig["added"]> {
  const sizes = (["addition_time_embed_dim", "projection_class_embeddings_input_dim"] as const).map(key => {
    const size = config[key];
    if (!size) throw new ModelError(file, key, "a width, since addition_embed_type is text_time", JSON.stringify(size ?? null));
    return size;
  });
  return { timeWidth: sizes[0]!, width: sizes[1]! };
}

/** Reads `vae/config.json`. Throws ModelError. */
export function readVaeConfig(file: string): VaeConfig {
  return checkVaeConfig(file, readJson(file));
}

/** The same of what was read already; `file` is for messages. Throws ModelError. */
export function checkVaeConfig(file: string, json: unknown): VaeConfig {
  const config = checkConfig(file, json, vaeSchema);
  for (const key of ["down_block_types", "up_block_types"] as const) {
    const expected = config.block_out_channels.length;
    if (config[key].length !== expected)
      throw new ModelError(file, key, `${expected} as in block_out_channels`, String(config[key].length));
  }
  for (const channels of config.block_out_channels) requireDivides(file, "norm_num_groups", config.norm_num_groups, channels);
  return {
    inChannels: config.in_channels,
    outChannels: config.out_channels,
    latentChannels: config.latent_channels,
    channels: config.block_out_channels,
    layersPerBlock: config.layers_per_block,
    groups: config.norm_num_groups,
    activation: config.act_fn,
    useQuantConv: config.use_quant_conv,
    usePostQuantConv: config.use_post_quant_conv,
    midBlockAddAttention: config.mid_block_add_attention,
    scalingFactor: config.scaling_factor,
  };
}

/** Whether a text encoder is used with its projection, which is its place's business. */
interface TextEncoderUse {
  projects: boolean;
}

/** Reads `text_encoder/config.json`. Throws ModelError. */
export function readTextEncoderConfig(file: string, use: TextEncoderUse = { projects: false }): TextEncoderConfig {
  return checkTextEncoderConfig(file, readJson(file), use);
}

/** The same of what was read already; `file` is for messages. Throws ModelError. */
export function checkTextEncoderConfig(file: string, json: unknown, { projects }: TextEncoderUse): TextEncoderConfig {
  const config = checkConfig(file, json, textEncoderSchema);
  requireDivides(file, "num_attention_heads", config.num_attention_heads, config.hidden_size);
  return {
    vocabularySize: config.vocab_size,
    width: config.hidden_size,
    intermediateWidth: config.intermediate_size,
    layers: config.num_hidden_layers,
    heads: config.num_attention_heads,
    maxLength: config.max_position_embeddings,
    activation: config.hidden_act,
    epsilon: config.layer_norm_eps,
    eosTokenId: config.eos_token_id ?? 49407,
    projectionWidth: projects ? config.projection_dim : null,
  };
}

/** Reads and checks a JSON file. Throws ModelError for a missing or malformed file and for the first key that does not fit. */
export function parseConfig<T extends z.ZodType>(file: string, schema: T): z.output<T> {
  return checkConfig(file, readJson(file), schema);
}

/** Reads a JSON file. Throws ModelError where there is none. */
export function readJson(file: string): unknown {
  try {
    return JSON.parse(withoutNonFinite(readFileSync(file, "utf8")));
  } catch (error) {
    throw new ModelError(file, "file", "readable JSON", error instanceof Error ? error.message : String(error));
  }
}

/** Throws ModelError for the first key that does not fit. */
export function checkConfig<T extends z.ZodType>(file: string, json: unknown, schema: T): z.output<T> {
  const parsed = schema.safeParse(json, { reportInput: true });
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const expected = issue.code === "invalid_value" ? issue.values.map(value => JSON.stringify(value)).join(" or ") : issue.message;
  throw new ModelError(file, issue.path.join(".") || "file", expected, JSON.stringify(issue.input) ?? "nothing");
}

/** Python writes numbers that JSON lacks (diffusers saves `"lambda_min_clipped": -Infinity`); they stand for "no limit", as null does. */
function withoutNonFinite(text: string): string {
  // A text without an end is matched as well, so that no place is begun at twice.
  return text.replace(/("(?:[^"\\]|\\.)*"?)|-?\bInfinity\b|\bNaN\b/g, (_, quoted: string | undefined) => quoted ?? "null");
}

function requireDivides(file: string, key: string, divisor: number, channels: number): void {
  if (channels % divisor !== 0) throw new ModelError(file, key, `a divisor of ${channels}`, String(divisor));
}
