/** What a T2I-Adapter is built as: from the config beside it, or from the shapes of its tensors. */
import { z } from "zod";
import { type T2iAdapterConfig, t2iAdapterTypes } from "../../models/t2i-adapter.ts";
import { checkConfig } from "../../weights/configs.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { AdapterWeights } from "../adapter-weights.ts";
import type { T2iAdapterKeys } from "./keys.ts";

/** Class names of T2I-Adapters in `config.json`. */
export const t2iAdapterClasses = ["T2IAdapter"] as const;

const count = z.int().positive();
const schema = z.object({
  in_channels: count.default(3),
  channels: z.array(count).nonempty().default([320, 640, 1280, 1280]),
  num_res_blocks: count.default(2),
  downscale_factor: count.default(8),
  adapter_type: z.enum(t2iAdapterTypes).default("full_adapter"),
});

/** diffusers' T2IAdapter; `file` is for messages. Throws ModelError. */
export function t2iAdapterConfig(file: string, json: unknown): T2iAdapterConfig {
  const config = checkConfig(file, json, schema);
  return {
    type: config.adapter_type,
    inChannels: config.in_channels,
    channels: config.channels,
    blocks: config.num_res_blocks,
    downscale: config.downscale_factor,
  };
}

/** Squares of this many pixels, by type, in the releases: what a file does not tell. */
const releasedDownscale: Readonly<Record<T2iAdapterConfig["type"], number>> = { full_adapter: 8, full_adapter_xl: 16, light_adapter: 8 };

/** Of a file without a config. SDXL's adapter is told from the others by the channels that its squares of 16 pixels give. */
export function t2iAdapterConfigOfKeys(weights: AdapterWeights, keys: T2iAdapterKeys): T2iAdapterConfig {
  const channels = keys.levels.map(level => level.channels);
  if (keys.type === "light_adapter") {
    const pixels = weights.shape(keys.keyFor("body.0.in_conv.weight"), 4)[1]!;
    return {
      type: "light_adapter",
      ...squares(weights.path, "light_adapter", pixels),
      channels: channels.slice(0, -1),
      blocks: keys.blocks,
    };
  }
  const pixels = weights.shape(keys.keyFor("conv_in.weight"), 4)[1]!;
  const type = pixels >= releasedDownscale.full_adapter_xl ** 2 ? "full_adapter_xl" : "full_adapter";
  return { type, ...squares(weights.path, type, pixels), channels, blocks: keys.blocks };
}

function squares(path: string, type: T2iAdapterConfig["type"], pixels: number): { inChannels: number; downscale: number } {
  const downscale = releasedDownscale[type];
  const inChannels = pixels / downscale ** 2;
  if (!Number.isInteger(inChannels))
    throw new ModelError(path, "conv_in", `a multiple of ${downscale ** 2} input channels`, String(pixels));
  return { inChannels, downscale };
}
