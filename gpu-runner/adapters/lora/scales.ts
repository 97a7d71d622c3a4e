/** By how much a LoRA's product is multiplied: alpha / rank as kohya saves it, or as peft's configuration says. */
import { z } from "zod";
import { parseJson } from "../../../shared/json.ts";
import { ModelError } from "../../weights/model-error.ts";
import type { DoraReading } from "./dora.ts";

export interface LoraScales {
  /** What stands before every module's name. */
  prefix: string;
  /** What a weight other than 1 means to a DoRA of this origin. */
  dora: DoraReading;
  scaleOf(module: { file: string; module: string; rank: number; alpha: number | null }): number;
}

/** No alpha means alpha = rank. */
export function plainScales(dora: DoraReading): LoraScales {
  return { prefix: "", dora, scaleOf: ({ rank, alpha }) => (alpha === null ? 1 : alpha / rank) };
}

/**
 * What diffusers writes into the header since 0.35: peft's configuration of each component as JSON, under its name and a dot. Components
 * without one have plain scales.
 */
export function metadataScales(file: string, text: string): LoraScales {
  const key = "__metadata__.lora_adapter_metadata";
  const entries = z.record(z.string(), z.unknown()).safeParse(parseJson(text));
  if (!entries.success) throw new ModelError(file, key, "a JSON object", text.slice(0, 100));
  const configs = new Map<string, Record<string, unknown>>();
  for (const [name, value] of Object.entries(entries.data)) {
    const dot = name.indexOf(".");
    const component = name.slice(0, dot + 1);
    configs.set(component, { ...configs.get(component), [name.slice(dot + 1)]: value });
  }
  const scales = [...configs].map(([prefix, config]) => [prefix, peftScales({ file, key, config, prefix })] as const);
  const plain = plainScales("peft");
  return {
    ...plain,
    scaleOf(module) {
      const found = scales.find(([prefix]) => module.module.startsWith(prefix));
      return found ? found[1].scaleOf({ ...module, module: module.module.slice(found[0].length) }) : plain.scaleOf(module);
    },
  };
}

const off = z.literal([false, null]).optional();
const noValue = z.union([z.null(), z.literal([false, "", "none"]), z.array(z.unknown()).max(0)]).optional();
const patternSchema = z.record(z.string().max(1000), z.number()).nullish();

/** peft's LoraConfig as far as it changes what is computed; what is not served has to be off. */
const configSchema = z.looseObject({
  peft_type: z.literal("LORA").optional(),
  r: z.int().positive(),
  lora_alpha: z.number(),
  rank_pattern: patternSchema,
  alpha_pattern: patternSchema,
  use_rslora: z.boolean().nullish(),
  use_dora: z.boolean().nullish(),
  bias: z.literal("none").optional(),
  fan_in_fan_out: off,
  modules_to_save: noValue,
  layer_replication: noValue,
  target_parameters: noValue,
  trainable_token_indices: noValue,
  alora_invocation_tokens: noValue,
  use_qalora: off,
  use_bdlora: off,
  arrow_config: noValue,
  kasa_config: noValue,
  monteclora_config: noValue,
  velora_config: noValue,
});

/** Throws ModelError naming the setting that is malformed or not served. */
export function peftScales(source: { file: string; key: string; config: unknown; prefix: string }): LoraScales {
  const parsed = configSchema.safeParse(source.config);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new ModelError(source.file, [source.key, ...issue!.path].join("."), "a served setting of peft's LoRA", issue!.message);
  }
  const { r, lora_alpha, rank_pattern, alpha_pattern, use_rslora } = parsed.data;
  const ranks = patterns(source.file, "rank_pattern", rank_pattern ?? {});
  const alphas = patterns(source.file, "alpha_pattern", alpha_pattern ?? {});
  return {
    prefix: source.prefix,
    dora: "peft",
    scaleOf({ file, module, rank }) {
      const expected = valueFor(ranks, module) ?? r;
      if (expected !== rank) throw new ModelError(file, module, `rank ${expected} as its configuration says`, String(rank));
      const alpha = valueFor(alphas, module) ?? lora_alpha;
      return use_rslora ? alpha / Math.sqrt(rank) : alpha / rank;
    },
  };
}

/** peft takes the keys for regular expressions that end a module's name; names alone are served, since a stranger's expression may run forever. */
function patterns(file: string, key: string, values: Record<string, number>): [string, number][] {
  return Object.entries(values).map(([pattern, value]) => {
    const name = pattern.replace(/^\^/, "").replace(/\$$/, "").replaceAll("\\.", ".");
    if (!/^[\w.-]+$/.test(name)) throw new ModelError(file, `${key}.${pattern}`, "a module's name or its end", "a regular expression");
    return [pattern.startsWith("^") ? `^${name}` : name, value];
  });
}

/** The first pattern that is the module or ends it after a dot, as peft's `get_pattern_key`. */
function valueFor(list: readonly (readonly [string, number])[], module: string): number | undefined {
  return list.find(([name]) => (name.startsWith("^") ? module === name.slice(1) : module === name || module.endsWith(`.${name}`)))?.[1];
}
