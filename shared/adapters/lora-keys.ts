/**
 * Keys of LoRA and LyCORIS files: a module of the base, then the part that a tensor plays. Sources: sd-scripts' networks/lora.py,
 * LyCORIS' modules, diffusers' loaders and state_dict_utils, peft's save_and_load.
 */
import { FileError } from "../file-error.ts";

/** What a tensor is within its module's change. */
export const loraParts = [
  "down",
  "up",
  "mid",
  "alpha",
  "doraScale",
  "magnitude",
  "upBias",
  "hadaW1a",
  "hadaW1b",
  "hadaW2a",
  "hadaW2b",
  "hadaT1",
  "hadaT2",
  "lokrW1",
  "lokrW1a",
  "lokrW1b",
  "lokrW2",
  "lokrW2a",
  "lokrW2b",
  "lokrT2",
  "gloraA1",
  "gloraA2",
  "gloraB1",
  "gloraB2",
  "diff",
  "diffBias",
  "norm",
  "normBias",
  "ia3",
  "ia3OnInput",
] as const;
export type LoraPart = (typeof loraParts)[number];

/** The first that a key ends with. */
const suffixes: readonly (readonly [string, LoraPart])[] = [
  [".lora_down.weight", "down"],
  [".lora_up.weight", "up"],
  [".lora_mid.weight", "mid"],
  [".lora_A.default.weight", "down"],
  [".lora_B.default.weight", "up"],
  [".lora_A.weight", "down"],
  [".lora_B.weight", "up"],
  [".lora_B.bias", "upBias"],
  [".lora_magnitude_vector.default.weight", "magnitude"],
  [".lora_magnitude_vector.weight", "magnitude"],
  [".lora_magnitude_vector", "magnitude"],
  [".lora_linear_layer.down.weight", "down"],
  [".lora_linear_layer.up.weight", "up"],
  [".lora_conv_layer.down.weight", "down"],
  [".lora_conv_layer.up.weight", "up"],
  [".lora.down.weight", "down"],
  [".lora.up.weight", "up"],
  [".lora_linear_layer.alpha", "alpha"],
  [".lora.alpha", "alpha"],
  [".alpha", "alpha"],
  [".dora_scale", "doraScale"],
  [".hada_w1_a", "hadaW1a"],
  [".hada_w1_b", "hadaW1b"],
  [".hada_w2_a", "hadaW2a"],
  [".hada_w2_b", "hadaW2b"],
  [".hada_t1", "hadaT1"],
  [".hada_t2", "hadaT2"],
  [".lokr_w1", "lokrW1"],
  [".lokr_w1_a", "lokrW1a"],
  [".lokr_w1_b", "lokrW1b"],
  [".lokr_w2", "lokrW2"],
  [".lokr_w2_a", "lokrW2a"],
  [".lokr_w2_b", "lokrW2b"],
  [".lokr_t2", "lokrT2"],
  [".a1.weight", "gloraA1"],
  [".a2.weight", "gloraA2"],
  [".b1.weight", "gloraB1"],
  [".b2.weight", "gloraB2"],
  [".diff", "diff"],
  [".diff_b", "diffBias"],
  [".w_norm", "norm"],
  [".b_norm", "normBias"],
  [".on_input", "ia3OnInput"],
];

/** Parts that other trainers save and that nothing here can apply, by the name of their method. */
export const unservedSuffixes: readonly (readonly [string, string])[] = [
  [".oft_blocks", "OFT"],
  [".oft_diag", "OFT"],
  [".oft_R", "OFT"],
  [".boft_R", "BOFT"],
  [".boft_s", "BOFT"],
  [".rescale", "OFT with rescaling"],
  [".lora_embedding_A", "LoRA of an embedding"],
  [".lora_embedding_B", "LoRA of an embedding"],
  [".set_weight", "replaced weights"],
  [".reshape_weight", "reshaped weights"],
  [".bias_indices", "sparse biases"],
  [".bias_values", "sparse biases"],
  [".bias_size", "sparse biases"],
];

/** Layers of attention in diffusers' first LoRA files, by their names today. */
const oldAttention = /^(.*?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up|alpha)(?:\.weight)?$/;

export interface LoraKey {
  /** As the file names it; `to_q_lora` of old files already as `to_q`, `to_out_lora` as `to_out.0`. */
  module: string;
  part: LoraPart;
}

/** Null where no row knows the key. */
export function splitLoraKey(key: string): LoraKey | null {
  const old = oldAttention.exec(key);
  if (old) return { module: oldModule(old[1]!, old[2]!), part: old[3] as "down" | "up" | "alpha" };
  const row = suffixes.find(([suffix]) => key.endsWith(suffix));
  if (row) return { module: key.slice(0, -row[0].length), part: row[1] };
  // (IA)3 saves a plain weight; only under kohya's prefix is it not the base's own.
  return key.startsWith("lora_") && key.endsWith(".weight") ? { module: key.slice(0, -".weight".length), part: "ia3" } : null;
}

/** The text encoder's own projections are `q_proj`, `out_proj`; diffusers' first files name them as the UNet's. */
function oldModule(place: string, projection: string): string {
  if (place.endsWith(".self_attn")) return `${place}.${projection}_proj`;
  return `${place}.to_${projection === "out" ? "out.0" : projection}`;
}

interface Algorithm {
  /** Parts by which it is recognised. */
  mark: readonly LoraPart[];
  required: readonly LoraPart[];
  optional: readonly LoraPart[];
}

export const loraAlgorithmNames = ["lora", "loha", "lokr", "glora", "full", "norm", "ia3"] as const;
export type LoraAlgorithm = (typeof loraAlgorithmNames)[number];

export const loraAlgorithms = {
  lora: { mark: ["down", "up"], required: ["down", "up"], optional: ["mid", "alpha"] },
  loha: { mark: ["hadaW1a"], required: ["hadaW1a", "hadaW1b", "hadaW2a", "hadaW2b"], optional: ["hadaT1", "hadaT2", "alpha"] },
  lokr: {
    mark: ["lokrW1", "lokrW1a", "lokrW2", "lokrW2a"],
    required: [],
    optional: ["lokrW1", "lokrW1a", "lokrW1b", "lokrW2", "lokrW2a", "lokrW2b", "lokrT2", "alpha"],
  },
  glora: { mark: ["gloraA1"], required: ["gloraA1", "gloraA2", "gloraB1", "gloraB2"], optional: ["alpha"] },
  // Some trainers save an alpha beside a full difference; it means nothing there.
  full: { mark: ["diff"], required: ["diff"], optional: ["alpha"] },
  norm: { mark: ["norm"], required: ["norm"], optional: ["alpha"] },
  ia3: { mark: ["ia3"], required: ["ia3", "ia3OnInput"], optional: ["alpha"] },
} satisfies Record<LoraAlgorithm, Algorithm>;

/** Parts that change a bias, or how the change of the weight is applied; any algorithm may have them. */
const sharedParts: readonly LoraPart[] = ["doraScale", "magnitude", "upBias", "diffBias", "normBias"];

/** The algorithm of a module's parts; null where only its bias changes. Throws FileError naming the key that is too many or missing. */
export function algorithmOf(module: string, parts: ReadonlyMap<LoraPart, { key: string }>): LoraAlgorithm | null {
  const marked = loraAlgorithmNames.filter(name => loraAlgorithms[name].mark.some(part => parts.has(part)));
  if (marked.length > 1) throw new FileError(module, "one algorithm", marked.join(" and "));
  const [name] = marked;
  const row: Algorithm | undefined = name && loraAlgorithms[name];
  const known = [...(row?.required ?? []), ...(row?.optional ?? []), ...sharedParts];
  for (const [part, { key }] of parts)
    if (!known.includes(part)) throw new FileError(key, `a part of ${name ?? "some algorithm"}`, `"${part}" alone`);
  const missing = row?.required.find(part => !parts.has(part));
  if (missing) throw new FileError(module, `a tensor "${missing}" beside ${[...parts.values()][0]!.key}`, "none");
  if (!name && (parts.has("doraScale") || parts.has("magnitude")))
    throw new FileError(module, "a change that a magnitude goes with", "none");
  return name ?? null;
}

/** How a report names what was done with a module: DoRA's magnitude goes with any algorithm. */
export function algorithmLabel(name: LoraAlgorithm | null, parts: ReadonlySet<LoraPart> | ReadonlyMap<LoraPart, unknown>): string {
  if (name === null) return "bias";
  if (parts.has("doraScale") || parts.has("magnitude")) return `dora-${name}`;
  return parts.has("mid") ? "lora-tucker" : name;
}

/** How files name the base's modules, by how the names begin. */
export const loraNamings = [
  ["kohya-sdxl", /^lora_unet_(?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_/],
  ["kohya", /^lora_(?:unet|te|te1|te2)_/],
  ["onetrainer", /^(?:lora_(?:unet|te|te1|te2)\.|unet\.(?:input|output)_blocks\.|unet\.middle_block\.|clip_[lgh]\.text_)/],
  ["peft", /^base_model\.model\./],
  ["diffusers", /^(?:unet|text_encoder|text_encoder_2)\./],
  ["comfyui", /^(?:diffusion_model\.|text_encoders\.|clip_[lgh]\.transformer\.)/],
  ["bare", /^(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|text_model|encoder\.layers)[._]/],
] as const satisfies readonly (readonly [string, RegExp])[];

/** Null for a module of no base that is served here. */
export function loraNaming(module: string): (typeof loraNamings)[number][0] | null {
  return loraNamings.find(([, pattern]) => pattern.test(module))?.[0] ?? null;
}
