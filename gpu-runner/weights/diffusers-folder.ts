/** Opens a diffusers folder: `model_index.json` and a folder per component, weights plain, half precision or in shards. */
import { existsSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { z } from "zod";
import { parseConfig, readTextEncoderConfig, readUnetConfig, readVaeConfig } from "./configs.ts";
import { type KeyLayout, textEncoderKeys, unetKeys, vaeKeys } from "./key-layouts.ts";
import { ModelError } from "./model-error.ts";
import { familyOf, type ModelSource, requireTextWidth, type TextEncoderPart, type TokenizerSource } from "./model-source.ts";
import { shardsOf } from "./shards.ts";

const component = z.tuple([z.string().nullable(), z.string().nullable()]);
const indexSchema = z.object({
  unet: component,
  vae: component,
  text_encoder: component.optional(),
  text_encoder_2: component.optional(),
  tokenizer: component.optional(),
  tokenizer_2: component.optional(),
  scheduler: component,
  force_zeros_for_empty_prompt: z.boolean().nullish(),
});
type Index = z.output<typeof indexSchema>;

/** Class names by component; another class is another architecture. Which pipeline they were saved from says nothing. */
const supportedClasses = {
  unet: ["UNet2DConditionModel"],
  vae: ["AutoencoderKL"],
  text_encoder: ["CLIPTextModel", "CLIPTextModelWithProjection"],
  text_encoder_2: ["CLIPTextModelWithProjection"],
  tokenizer: ["CLIPTokenizer", "CLIPTokenizerFast"],
  tokenizer_2: ["CLIPTokenizer", "CLIPTokenizerFast"],
} as const satisfies Partial<Record<keyof Index, readonly string[]>>;

/** Text encoders by their folders, in the order in which their states are joined. */
const textEncoderSlots = [
  { component: "textEncoder", folder: "text_encoder", tokenizer: "tokenizer", projects: false },
  { component: "textEncoder2", folder: "text_encoder_2", tokenizer: "tokenizer_2", projects: true },
] as const;

const tokenizerSchema = z.object({ model_max_length: z.number().positive().optional() });
const schedulerSchema = z.record(z.string(), z.unknown());

/** Files of a tokenizer's folder that change what a prompt means. */
export const tokenizerFiles = [
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "tokenizer.json",
] as const;

/** @param path absolute. Throws ModelError. */
export function openDiffusersFolder(path: string): ModelSource {
  const indexFile = join(path, "model_index.json");
  const index = parseConfig(indexFile, indexSchema);
  const slots = textEncoderSlots.filter(({ folder }) => index[folder]?.[1]);
  requireClasses(indexFile, index, slots);
  const unetFile = join(path, "unet/config.json");
  const unet = readUnetConfig(unetFile);
  const textEncoders = slots.map(({ component, folder, projects }): TextEncoderPart => {
    return { component, config: readTextEncoderConfig(join(path, folder, "config.json"), { projects }) };
  });
  requireTextWidth(unetFile, unet, textEncoders);
  const schedulerFile = join(path, "scheduler/scheduler_config.json");
  const weights = [
    ...weightFiles(path, "unet", "diffusion_pytorch_model", unetKeys),
    ...weightFiles(path, "vae", "diffusion_pytorch_model", vaeKeys),
    ...slots.flatMap(({ component, folder }, i) => weightFiles(path, folder, "model", textEncoderKeys(component, textEncoders[i]!.config))),
  ];
  return {
    path,
    layout: "diffusers",
    family: familyOf(unet, textEncoders),
    unet,
    vae: readVaeConfig(join(path, "vae/config.json")),
    textEncoders,
    tokenizers: slots.map(({ tokenizer }, i) => tokenizerSource(join(path, tokenizer), textEncoders[i]!.config.maxLength)),
    weights: weights.map(({ file, keys }) => ({ file, keys })),
    schedulerConfig: parseConfig(schedulerFile, schedulerSchema),
    schedulerFile,
    forceZerosForEmptyPrompt: index.force_zeros_for_empty_prompt ?? unet.added !== null,
    previewDecoder: [join(path, "preview_decoder")].find(existsSync) ?? null,
    files: hashedFiles(path, slots, weights),
  };
}

type Slot = (typeof textEncoderSlots)[number];

function requireClasses(file: string, index: Index, slots: readonly Slot[]): void {
  const needed = ["unet", "vae", ...slots.flatMap(({ folder, tokenizer }) => [folder, tokenizer])] as (keyof typeof supportedClasses)[];
  for (const name of slots.length > 0 ? needed : [...needed, "text_encoder" as const]) {
    const got = index[name]?.[1];
    const classes: readonly string[] = supportedClasses[name];
    if (!classes.some(known => known === got)) throw new ModelError(file, name, classes.join(" or "), String(got));
  }
}

/** A tokenizer's folder. Some say 1e30 for "no limit": the encoder's positions are the limit then. */
export function tokenizerSource(folder: string, positions: number): TokenizerSource {
  const { model_max_length: limit } = parseConfig(join(folder, "tokenizer_config.json"), tokenizerSchema);
  return { folder, pad: null, maxLength: Math.min(limit ?? positions, positions) };
}

interface WeightFile {
  file: string;
  keys: KeyLayout;
  /** The list of the shards that it belongs to. */
  shardList: string | null;
}

/** The plain name if it is there, whole or in shards, else the half-precision variant. */
function weightFiles(path: string, directory: string, stem: string, keys: KeyLayout): WeightFile[] {
  const at = (name: string): string => join(path, directory, name);
  for (const variant of ["", ".fp16"]) {
    const whole = at(`${stem}${variant}.safetensors`);
    if (existsSync(whole)) return [{ file: whole, keys, shardList: null }];
    // Both orders of the two endings are in use.
    const lists = [`${stem}${variant}.safetensors.index.json`, `${stem}.safetensors.index${variant}.json`].map(at);
    const shardList = lists.find(existsSync);
    if (!shardList) continue;
    return shardsOf(shardList).map(file => ({ file, keys, shardList }));
  }
  throw new ModelError(at("."), "weights", `${stem}.safetensors or ${stem}.fp16.safetensors, whole or in shards`, "neither");
}

function hashedFiles(path: string, slots: readonly Slot[], weights: readonly WeightFile[]): [string, string][] {
  // With "/" on every system, so that a model has one hash.
  const nameOf = (file: string): string => relative(path, file).split(sep).join("/");
  const names = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    ...["unet", "vae", ...slots.map(({ folder }) => folder)].map(name => `${name}/config.json`),
    ...slots.flatMap(({ tokenizer }) => tokenizerFiles.map(name => `${tokenizer}/${name}`)),
    ...weights.map(({ file }) => nameOf(file)),
    ...new Set(weights.flatMap(({ shardList }) => (shardList === null ? [] : [nameOf(shardList)]))),
  ];
  return names.map((name): [string, string] => [name, join(path, name)]).filter(([, file]) => existsSync(file));
}
