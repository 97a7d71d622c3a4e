/** A published model as it lies on disk, whatever its layout: configs, where the weights are, what else determines a picture. */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";
import { resolve } from "node:path";
import type { ModelFamily } from "../../shared/model.ts";
import type { Support } from "../../shared/support.ts";
import type { TextEncoderConfig, UnetConfig, VaeConfig } from "./configs.ts";
import { openDiffusersFolder } from "./diffusers-folder.ts";
import { sha256OfFile } from "./file-hash.ts";
import type { ComponentName, KeyLayout } from "./key-layouts.ts";
import { ModelError } from "./model-error.ts";
import { openSingleFile } from "./single-file.ts";

/** Layouts in which base models are published. */
const modelLayouts = ["diffusers", "single-file"] as const;
export type ModelLayout = (typeof modelLayouts)[number];

/** Rows of docs/support.md. */
export const familyTraits = {
  sd1: { title: "Stable Diffusion 1.x, its inpainting and InstructPix2Pix models", proof: "reference" },
  sd2: { title: "Stable Diffusion 2.0 and 2.1, epsilon and v-prediction", proof: "reference" },
  sdxl: { title: "Stable Diffusion XL 1.0 base and its inpainting and edit models", proof: "reference" },
  "sdxl-refiner": { title: "Stable Diffusion XL 1.0 refiner", proof: "reference" },
} as const satisfies Record<ModelFamily, Support>;

/** Rows of docs/support.md. */
export const layoutTraits = {
  diffusers: { title: "diffusers folder: plain, `.fp16.`, in shards; fp32, fp16, bf16, fp64", proof: "reference" },
  "single-file": { title: "single file of the original releases; fp32, fp16, bf16, fp64", proof: "reference" },
} as const satisfies Record<ModelLayout, Support>;

export interface TextEncoderPart {
  component: Extract<ComponentName, "textEncoder" | "textEncoder2">;
  config: TextEncoderConfig;
}

/** Where a tokenizer's vocabulary is. */
export interface TokenizerSource {
  /** Absolute path of a tokenizer's folder; null: CLIP's own vocabulary, which single files presuppose. */
  folder: string | null;
  /** The token that fills a chunk, where no folder tells it; null: end of text. */
  pad: string | null;
  /** Ids of one chunk, both marks included. */
  maxLength: number;
}

export interface ModelSource {
  /** Absolute path of the folder or file. */
  path: string;
  layout: ModelLayout;
  family: ModelFamily;
  unet: UnetConfig;
  vae: VaeConfig;
  /** In the order in which their states are joined. */
  textEncoders: readonly TextEncoderPart[];
  /** One per text encoder. */
  tokenizers: readonly TokenizerSource[];
  weights: readonly { file: string; keys: KeyLayout }[];
  /** In the form of `scheduler/scheduler_config.json`. */
  schedulerConfig: Readonly<Record<string, unknown>>;
  /** Named in errors about the scheduler. */
  schedulerFile: string;
  /** SDXL base: an absent negative prompt is zeros, not the encoding of "". */
  forceZerosForEmptyPrompt: boolean;
  /** A TAESD-type decoder that came with the model: its folder or file; null: none. It determines no picture. */
  previewDecoder: string | null;
  /** What determines a picture: a name that does not depend on the place, and the file. */
  files: readonly (readonly [name: string, file: string])[];
}

/** Reads everything but the weights of a diffusers folder or a single file. Throws ModelError naming file, key, expected and got. */
export function openModel(path: string): ModelSource {
  const absolute = resolve(path);
  const found = statSync(absolute, { throwIfNoEntry: false });
  if (!found) throw new ModelError(absolute, "file", "a model's folder or .safetensors file", "nothing");
  return found.isDirectory() ? openDiffusersFolder(absolute) : openSingleFile(absolute);
}

/** The family that configs imply. */
export function familyOf(unet: UnetConfig, textEncoders: readonly TextEncoderPart[]): ModelFamily {
  if (unet.added) return textEncoders.some(({ component }) => component === "textEncoder") ? "sdxl" : "sdxl-refiner";
  // The published widths decide; of others, what else the second version changed.
  if (unet.crossAttentionDim === 768) return "sd1";
  return unet.crossAttentionDim === 1024 || unet.useLinearProjection ? "sd2" : "sd1";
}

/** Throws ModelError unless the joined text states have the width that the UNet reads. */
export function requireTextWidth(file: string, unet: UnetConfig, textEncoders: readonly TextEncoderPart[]): void {
  const width = textEncoders.reduce((sum, { config }) => sum + config.width, 0);
  if (unet.crossAttentionDim === width) return;
  const owner = textEncoders.length > 1 ? "the sum of the text encoders'" : "the text encoder's";
  throw new ModelError(file, "cross_attention_dim", `${width}, ${owner} hidden_size`, String(unet.crossAttentionDim));
}

export interface ModelHash {
  /** "sha256:<hex>" over the canonical JSON of sorted [name, sha256 of the file]. */
  hash: string;
  /** SHA-256 in hex of each weight file by its path. */
  files: ReadonlyMap<string, string>;
}

/** Hashes the files that determine the picture: reads all of them, or with a cache directory those that it does not know yet. */
export async function hashModel({ files }: ModelSource, cacheDir?: string): Promise<ModelHash> {
  const hashes = new Map<string, string>();
  const rows: [string, string][] = [];
  for (const [name, file] of files.toSorted(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))) {
    const hash = hashes.get(file) ?? (await sha256OfFile(file, cacheDir));
    hashes.set(file, hash);
    rows.push([name, hash]);
  }
  return { hash: `sha256:${createHash("sha256").update(JSON.stringify(rows)).digest("hex")}`, files: hashes };
}
