/** What a ControlNet is built as: from the config beside it, or from its base and the shapes of its tensors. */
import { z } from "zod";
import type { ControlNetConfig, UnionConfig } from "../../models/controlnet.ts";
import { checkConfig, checkUnetConfig, type UnetConfig } from "../../weights/configs.ts";
import type { AdapterWeights } from "../adapter-weights.ts";
import type { ControlNetKeys } from "./keys.ts";

/** Class names of ControlNets in `config.json`. */
export const controlNetClasses = ["ControlNetModel", "ControlNetUnionModel"] as const;

const count = z.int().positive();
const schema = z.object({
  _class_name: z.enum(controlNetClasses).default("ControlNetModel"),
  conditioning_channels: count.default(3),
  conditioning_embedding_out_channels: z.array(count).nonempty().optional(),
  controlnet_conditioning_channel_order: z.enum(["rgb", "bgr"]).default("rgb"),
  global_pool_conditions: z.boolean().default(false),
  down_block_types: z.array(z.string()).default(["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]),
  addition_time_embed_dim: count.nullish(),
  num_control_type: count.default(6),
  num_trans_channel: count.default(320),
  num_trans_layer: count.default(1),
});

/** diffusers' ControlNetModel and ControlNetUnionModel; `file` is for messages. Throws ModelError. */
export function controlNetConfig(file: string, json: unknown): ControlNetConfig {
  const config = checkConfig(file, json, schema);
  const isUnion = config._class_name === "ControlNetUnionModel";
  const unet = checkUnetConfig(file, {
    ...z.record(z.string(), z.unknown()).parse(json),
    _class_name: "UNet2DConditionModel",
    // It has no up blocks.
    up_block_types: config.down_block_types.map(type => type.replace("Down", "Up")).reverse(),
  });
  return {
    unet,
    conditioningChannels: config.conditioning_channels,
    embeddingChannels: config.conditioning_embedding_out_channels ?? (isUnion ? [48, 96, 192, 384] : [16, 32, 96, 256]),
    channelOrder: config.controlnet_conditioning_channel_order,
    globalPool: config.global_pool_conditions,
    union: isUnion
      ? {
          controls: config.num_control_type,
          width: config.num_trans_channel,
          layers: config.num_trans_layer,
          switchWidth: config.addition_time_embed_dim ?? 256,
        }
      : null,
  };
}

/** Of a file without a config: levels and heads are the base's, all else stands in its shapes. */
export function controlNetConfigOfBase(base: UnetConfig, weights: AdapterWeights, keys: ControlNetKeys): ControlNetConfig {
  const shape = (name: string): readonly number[] => weights.shape(keys.keyFor(`${name}.weight`), 4);
  const place = "controlnet_cond_embedding";
  const embeddingChannels = [shape(`${place}.conv_in`)[0]!];
  for (let i = 1; keys.has(`${place}.blocks.${i}.weight`); i += 2) embeddingChannels.push(shape(`${place}.blocks.${i}`)[0]!);
  const projection = "mid_block.attentions.0.proj_in.weight";
  return {
    unet: {
      ...base,
      inChannels: shape("conv_in")[1]!,
      useLinearProjection: weights.tensor(keys.keyFor(projection)).shape.length === 2,
      guidanceWidth: null,
    },
    conditioningChannels: shape(`${place}.conv_in`)[1]!,
    embeddingChannels,
    channelOrder: "rgb",
    // Published for the control "shuffle" alone, which only its name tells.
    globalPool: false,
    union: keys.has("task_embedding") ? unionOf(weights, keys) : null,
  };
}

function unionOf(weights: AdapterWeights, keys: ControlNetKeys): UnionConfig {
  const [controls, width] = weights.shape(keys.keyFor("task_embedding"), 2) as [number, number];
  const [, switches] = weights.shape(keys.keyFor("control_add_embedding.linear_1.weight"), 2) as [number, number];
  let layers = 0;
  while (keys.has(`transformer_layes.${layers}.ln_1.weight`)) layers++;
  return { controls, width, layers, switchWidth: Math.floor(switches / controls) };
}
