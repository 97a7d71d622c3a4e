/** Weights in several files, which a list beside them names. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { parseConfig } from "./configs.ts";
import { ModelError } from "./model-error.ts";

/** A shard lies beside its list: anything else in the list's names would lead out of the model. */
const shardName = z.string().regex(/^[\w-][\w.-]*\.safetensors$/, "a .safetensors file beside this one");
const shardListSchema = z.object({ weight_map: z.record(z.string(), shardName) });

/** Paths of the shards of a `….safetensors.index.json`, sorted by name. Throws ModelError naming what is missing or leads elsewhere. */
export function shardsOf(list: string): string[] {
  const names = [...new Set(Object.values(parseConfig(list, shardListSchema).weight_map))].sort();
  return names.map(name => {
    const file = join(dirname(list), name);
    if (!existsSync(file)) throw new ModelError(list, name, "a shard beside this file", "none");
    return file;
  });
}
