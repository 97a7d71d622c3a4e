/** Opens a diffusers folder of the Stable Diffusion 1 family: finds its files, reads its configs, hashes what determines a picture. */
import { createHash } from "node:crypto";
import { createReadStream, existsSync } from "node:fs";
import { join, relative, resolve, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import {
  parseConfig,
  readTextEncoderConfig,
  readUnetConfig,
  readVaeConfig,
  type TextEncoderConfig,
  type UnetConfig,
  type VaeConfig,
} from "./configs.ts";
import { ModelError } from "./model-error.ts";

export type ComponentName = "unet" | "vae" | "textEncoder";

export interface ModelFolder {
  /** Absolute. */
  path: string;
  /** Absolute paths of the weight files. */
  weightFiles: Readonly<Record<ComponentName, string>>;
  unet: UnetConfig;
  vae: VaeConfig;
  textEncoder: TextEncoderConfig;
  /** As it stands in `scheduler/scheduler_config.json`. */
  schedulerConfig: Readonly<Record<string, unknown>>;
  tokenizerMaxLength: number;
}

/** Pipelines whose folders hold the three components as they are built here. */
export const pipelineClasses = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"] as const;

const component = z.tuple([z.string().nullable(), z.string().nullable()]);
const indexSchema = z.object({
  _class_name: z.enum(pipelineClasses),
  unet: component,
  vae: component,
  text_encoder: component,
  tokenizer: component,
  scheduler: component,
});

/** Class names by component; another class is another architecture. */
const supportedClasses = {
  unet: ["UNet2DConditionModel"],
  vae: ["AutoencoderKL"],
  text_encoder: ["CLIPTextModel"],
  tokenizer: ["CLIPTokenizer", "CLIPTokenizerFast"],
} as const;

const tokenizerSchema = z.object({ model_max_length: z.number().positive().optional() });
const schedulerSchema = z.record(z.string(), z.unknown());

/** Files beside weights and configs that change what a prompt means or how it is sampled. */
const otherFiles = [
  "model_index.json",
  "scheduler/scheduler_config.json",
  "tokenizer/tokenizer_config.json",
  "tokenizer/special_tokens_map.json",
  "tokenizer/added_tokens.json",
  "tokenizer/vocab.json",
  "tokenizer/merges.txt",
  "tokenizer/tokenizer.json",
];

/** Reads everything but the weights. Throws ModelError naming file, key, expected and got. */
export function openModelFolder(folder: string): ModelFolder {
  const path = resolve(folder);
  const indexFile = join(path, "model_index.json");
  const index = parseConfig(indexFile, indexSchema);
  for (const [name, classes] of Object.entries(supportedClasses)) {
    const got = index[name as keyof typeof supportedClasses][1];
    if (!classes.some(known => known === got)) throw new ModelError(indexFile, name, classes.join(" or "), String(got));
  }
  const textEncoder = readTextEncoderConfig(join(path, "text_encoder/config.json"));
  const unetFile = join(path, "unet/config.json");
  const unet = readUnetConfig(unetFile);
  if (unet.crossAttentionDim !== textEncoder.width)
    throw new ModelError(
      unetFile,
      "cross_attention_dim",
      `${textEncoder.width}, the text encoder's hidden_size`,
      String(unet.crossAttentionDim),
    );
  const tokenizer = parseConfig(join(path, "tokenizer/tokenizer_config.json"), tokenizerSchema);
  return {
    path,
    weightFiles: {
      unet: weightFile(path, "unet", "diffusion_pytorch_model"),
      vae: weightFile(path, "vae", "diffusion_pytorch_model"),
      textEncoder: weightFile(path, "text_encoder", "model"),
    },
    unet,
    vae: readVaeConfig(join(path, "vae/config.json")),
    textEncoder,
    schedulerConfig: parseConfig(join(path, "scheduler/scheduler_config.json"), schedulerSchema),
    // Some tokenizers say 1e30 for "no limit": the encoder's positions are the limit then.
    tokenizerMaxLength: Math.min(tokenizer.model_max_length ?? textEncoder.maxLength, textEncoder.maxLength),
  };
}

export interface ModelHash {
  /** "sha256:<hex>" over the canonical JSON of sorted [relative path, sha256 of the file]. */
  hash: string;
  /** SHA-256 in hex of each weight file. */
  weights: Readonly<Record<ComponentName, string>>;
}

/** Hashes the files that determine the picture; reads all of them. Throws ModelError where the folder cannot be opened. */
export async function hashModel(folder: ModelFolder): Promise<ModelHash> {
  // With "/" on every system, so that a model has one hash.
  const nameOf = (file: string): string => relative(folder.path, file).split(sep).join("/");
  const configs = ["unet", "vae", "text_encoder"].map(name => `${name}/config.json`);
  const present = [...otherFiles, ...configs].filter(name => existsSync(join(folder.path, name)));
  const names = [...present, ...Object.values(folder.weightFiles).map(nameOf)].sort();
  const rows: [string, string][] = [];
  for (const name of names) rows.push([name, await sha256OfFile(join(folder.path, name))]);
  const byName = new Map(rows);
  const of = (name: ComponentName): string => byName.get(nameOf(folder.weightFiles[name]))!;
  const hash = `sha256:${createHash("sha256").update(JSON.stringify(rows)).digest("hex")}`;
  return { hash, weights: { unet: of("unet"), vae: of("vae"), textEncoder: of("textEncoder") } };
}

async function sha256OfFile(file: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), hash);
  return hash.digest("hex");
}

/** The plain name if it is there, else the half-precision variant. */
function weightFile(path: string, directory: string, stem: string): string {
  const candidates = [`${stem}.safetensors`, `${stem}.fp16.safetensors`].map(name => join(path, directory, name));
  const found = candidates.find(existsSync);
  if (!found) throw new ModelError(join(path, directory), "weights", `${stem}.safetensors or ${stem}.fp16.safetensors`, "neither");
  return found;
}
