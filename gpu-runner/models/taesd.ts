/**
 * The decoder of TAESD (https://github.com/madebyollin/taesd, diffusers' AutoencoderTiny): convolutions only, so that a picture can be
 * shown while it is being made. How many there are is read from the keys; both layouts are known.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import type { TensorF32 } from "../components.ts";
import { multiply, symbol } from "../graph/dims.ts";
import { Graph, type Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import { parseConfig } from "../weights/configs.ts";
import { ModelError } from "../weights/model-error.ts";
import { placeFloat32 } from "../weights/placement.ts";
import { withSafetensors } from "../weights/safetensors.ts";
import { PlacedWeights, type WeightSource } from "../weights/weights.ts";
import { channelsOf, Place } from "./layers.ts";

/** The layers in their order; each but an upsampling has the number that its keys begin with. */
export type TaesdLayer =
  | { type: "convolution"; key: number; out: number; bias: boolean }
  | { type: "block"; key: number }
  | { type: "relu" }
  | { type: "double" };

/** Where diffusers' numbers begin; the original counts the clamp before the first convolution as well. */
const layouts = [
  { prefix: "decoder.layers.", first: 0 },
  { prefix: "taesd_decoder.", first: 1 },
  { prefix: "decoder.", first: 1 },
  { prefix: "", first: 1 },
] as const;

export interface TaesdDecoder {
  latentChannels: number;
  layers: readonly TaesdLayer[];
  weights: WeightSource;
}

const configSchema = z.object({
  _class_name: z.literal("AutoencoderTiny"),
  act_fn: z.literal("relu").optional(),
  upsample_fn: z.literal("nearest").optional(),
  upsampling_scaling_factor: z.literal(2).optional(),
  scaling_factor: z.literal(1).optional(),
  shift_factor: z.literal(0).optional(),
});

/** Opens a folder of diffusers' AutoencoderTiny or a .safetensors file of either layout. Throws ModelError naming what does not fit. */
export function openTaesd(path: string, cacheDir: string): TaesdDecoder {
  const file = statSync(path).isDirectory() ? taesdFile(path) : path;
  const sha256 = createHash("sha256").update(readFileSync(file)).digest("hex");
  const placed = placeFloat32(file, sha256, cacheDir);
  return withSafetensors(placed, source => {
    const entries = [...source.entries.values()];
    const layout = layouts.find(({ prefix, first }) => source.entries.has(`${prefix}${first}.weight`));
    if (!layout) throw new ModelError(file, "1.weight", "a TAESD decoder's first convolution here or at decoder.layers.0.", "none");
    const { prefix, first } = layout;
    const own = entries.filter(({ name }) => name.startsWith(prefix));
    const shapes = new Map(own.map(({ name, shape }) => [name.slice(prefix.length), shape]));
    const layers = readLayers(file, shapes, first);
    const known = new Set(layers.flatMap(layer => keysOf(layer)));
    const unknown = entries.find(({ name }) => !/^(taesd_)?encoder\./.test(name) && !known.has(name.slice(prefix.length)));
    if (unknown) throw new ModelError(file, unknown.name, "every key to be used", "an unused key");
    const tensors = own.map(
      ({ name, offset, byteLength, shape }) => [name.slice(prefix.length), { key: name, file: placed, offset, byteLength, shape }] as const,
    );
    return { latentChannels: shapes.get(`${first}.weight`)![1]!, layers, weights: new PlacedWeights(new Map(tensors)) };
  });
}

function taesdFile(folder: string): string {
  parseConfig(join(folder, "config.json"), configSchema);
  const candidates = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"].map(name => join(folder, name));
  const found = candidates.find(existsSync);
  if (!found) throw new ModelError(folder, "weights", "diffusion_pytorch_model.safetensors", "none");
  return found;
}

/** Convolution, relu, then blocks, an upsampling and a convolution, over and over; gaps in the numbers are what has no weights. */
function readLayers(file: string, shapes: ReadonlyMap<string, readonly number[]>, first: number): TaesdLayer[] {
  const numbers = [...shapes.keys()].map(key => Number(/^(\d+)\./.exec(key)?.[1] ?? Number.NaN)).filter(Number.isInteger);
  const last = Math.max(...numbers);
  const layers: TaesdLayer[] = [];
  let width = 0;
  const require = (key: string, expected: readonly number[]): void => {
    const got = shapes.get(key);
    if (String(got) !== String(expected)) throw new ModelError(file, key, `shape [${expected}]`, got ? `[${got}]` : "none");
  };
  for (let key = first; key <= Math.min(last, numbers.length + first); key++) {
    const kernel = shapes.get(`${key}.weight`);
    if (kernel) {
      const bias = shapes.has(`${key}.bias`);
      require(`${key}.weight`, [kernel[0]!, key === first ? kernel[1]! : width, 3, 3]);
      if (bias) require(`${key}.bias`, [kernel[0]!]);
      width = kernel[0]!;
      layers.push({ type: "convolution", key, out: width, bias });
    } else if (shapes.has(`${key}.conv.0.weight`)) {
      for (const member of [0, 2, 4]) {
        require(`${key}.conv.${member}.weight`, [width, width, 3, 3]);
        require(`${key}.conv.${member}.bias`, [width]);
      }
      layers.push({ type: "block", key });
    } else layers.push({ type: key === first + 1 ? "relu" : "double" });
  }
  if (width !== 3) throw new ModelError(file, `${last}.weight`, "a last convolution to 3 colours", String(width));
  return layers;
}

function keysOf(layer: TaesdLayer): string[] {
  if (layer.type === "convolution") return [`${layer.key}.weight`, ...(layer.bias ? [`${layer.key}.bias`] : [])];
  if (layer.type !== "block") return [];
  return [0, 2, 4].flatMap(member => [`${layer.key}.conv.${member}.weight`, `${layer.key}.conv.${member}.bias`]);
}

/** Input: `latents` [B, C, H, W], after `clampLatents`; output: `sample` [B, 3, 8H, 8W] where there are four levels, around 0..1. */
export function buildTaesdDecoder({ latentChannels, layers, weights }: TaesdDecoder): Graph {
  const graph = new Graph("taesd-decoder");
  const place = new Place(graph, weights);
  let h = graph.input("latents", [symbol("B"), latentChannels, symbol("H"), symbol("W")]);
  for (const layer of layers) {
    if (layer.type === "relu") h = ops.relu(h);
    else if (layer.type === "double") h = ops.resizeNearest(h, multiply(h.shape[2]!, 2), multiply(h.shape[3]!, 2));
    else if (layer.type === "convolution") h = convolution(place.at(`${layer.key}`), h, layer.out, layer.bias);
    else h = block(place.at(`${layer.key}`), h);
  }
  graph.output("sample", h);
  return graph;
}

/** Three convolutions plus the input. */
function block(place: Place, x: Value): Value {
  const width = channelsOf(x);
  let h = x;
  for (const member of [0, 2, 4]) {
    h = convolution(place.at(`conv.${member}`), h, width, true);
    if (member < 4) h = ops.relu(h);
  }
  return ops.relu(ops.add(h, x));
}

function convolution(place: Place, x: Value, out: number, bias: boolean): Value {
  const weight = place.weight("weight", [out, channelsOf(x), 3, 3]);
  return ops.conv2d(x, weight, bias ? place.weight("bias", [out]) : null, { stride: 1, pads: { top: 1, left: 1, bottom: 1, right: 1 } });
}

/** Latents on the sampler's scale as TAESD takes them: softly kept within -3..3. */
export function clampLatents({ data, shape }: TensorF32): TensorF32 {
  return { data: data.map(value => 3 * Math.tanh(value / 3)), shape };
}
