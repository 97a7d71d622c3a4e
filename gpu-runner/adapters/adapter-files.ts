/** Finds the weights of an adapter that was published as a diffusers folder or as one file. */
import { existsSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { parseConfig, readJson } from "../weights/configs.ts";
import { ModelError } from "../weights/model-error.ts";
import { shardsOf } from "../weights/shards.ts";

export interface AdapterFiles {
  /** Absolute paths of the weight files, sorted. */
  weights: readonly string[];
  /** The config beside them; null where there is none. */
  config: { file: string; json: unknown } | null;
}

/** Names of weights in a folder, in order of preference. */
const stems = ["diffusion_pytorch_model", "model", "adapter_model"].flatMap(stem => [stem, `${stem}.fp16`]);

const classSchema = z.object({ _class_name: z.string().optional(), model_type: z.string().optional() });

/**
 * `path` is a folder with weights (also `.fp16`, also in shards) and `config.json`, or one file, whose config may be `config.json` beside it
 * if that is of one of `classes`. Throws ModelError.
 */
export function findAdapterFiles(path: string, classes: readonly string[]): AdapterFiles {
  if (!existsSync(path)) throw new ModelError(path, "file", "a file or folder", "none");
  if (!statSync(path).isDirectory()) return { weights: [path], config: findConfig(dirname(path), classes, false) };
  return { weights: folderWeights(path), config: findConfig(path, classes, true) };
}

function findConfig(folder: string, classes: readonly string[], isOwn: boolean): AdapterFiles["config"] {
  const file = join(folder, "config.json");
  if (!existsSync(file)) return null;
  const { _class_name: className, model_type: modelType } = parseConfig(file, classSchema);
  const name = className ?? modelType;
  if (name === undefined || classes.includes(name)) return { file, json: readJson(file) };
  // Beside a single file it may be another's.
  if (!isOwn) return null;
  throw new ModelError(file, "_class_name", classes.join(" or "), name);
}

function folderWeights(folder: string): string[] {
  for (const stem of stems) {
    const single = join(folder, `${stem}.safetensors`);
    if (existsSync(single)) return [single];
    const [name, variant] = stem.split(".");
    const index = join(folder, variant ? `${name}.safetensors.index.${variant}.json` : `${name}.safetensors.index.json`);
    if (existsSync(index)) return shardsOf(index);
  }
  // Old releases have no other.
  const pickled = stems.map(stem => join(folder, `${stem}.bin`)).find(existsSync);
  if (pickled) return [pickled];
  throw new ModelError(folder, "weights", stems.map(stem => `${stem}.safetensors or .bin`).join(", "), "none");
}
