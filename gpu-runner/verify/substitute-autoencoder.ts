/**
 * Cases of adapters may come with a model that has no autoencoder, since they decode nothing. A model that makes pictures needs one, so such
 * a folder gets a small one of random weights beside its own parts, outside the folder of the cases.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { z } from "zod";
import { buildVaeDecoder, buildVaeEncoder } from "../models/autoencoder-kl.ts";
import { readVaeConfig } from "../weights/configs.ts";
import { writeRandomWeights } from "../weights/random-weights.ts";

const indexName = "model_index.json";
const indexSchema = z.looseObject({ vae: z.tuple([z.string().nullable(), z.string().nullable()]).optional() });
const vaeConfig = { _class_name: "AutoencoderKL", block_out_channels: [8], norm_num_groups: 4, latent_channels: 4 };

/** The path itself, or of a folder in the cache with the same parts and an autoencoder. */
export function withAutoencoder(model: string, cacheDir: string): string {
  const path = resolve(model);
  const indexFile = join(path, indexName);
  if (!existsSync(indexFile)) return path;
  const text = readFileSync(indexFile, "utf8");
  const index = indexSchema.safeParse(JSON.parse(text));
  if (!index.success || !index.data.vae || index.data.vae[1] !== null) return path;
  const name = createHash("sha256").update(`${path}\n${text}`).digest("hex").slice(0, 16);
  const folder = join(cacheDir, "verify", `without-autoencoder-${name}`);
  if (existsSync(folder)) return folder;
  mkdirSync(join(cacheDir, "verify"), { recursive: true });
  const making = mkdtempSync(join(cacheDir, "verify", "making-"));
  for (const part of readdirSync(path)) if (part !== indexName && part !== "vae") symlinkSync(join(path, part), join(making, part));
  writeFileSync(join(making, indexName), JSON.stringify({ ...index.data, vae: ["diffusers", "AutoencoderKL"] }));
  writeAutoencoder(join(making, "vae"));
  try {
    renameSync(making, folder);
  } catch (error) {
    // Another process was first.
    rmSync(making, { recursive: true, force: true });
    if (!existsSync(folder)) throw error;
  }
  return folder;
}

function writeAutoencoder(folder: string): void {
  mkdirSync(folder);
  const file = join(folder, "config.json");
  writeFileSync(file, JSON.stringify(vaeConfig));
  const config = readVaeConfig(file);
  writeRandomWeights(join(folder, "diffusion_pytorch_model.safetensors"), weights => {
    buildVaeEncoder(config, weights);
    buildVaeDecoder(config, weights);
  });
}
