/** Says what an adapter is from its files' headers: one table row per kind and published layout. The edge and the runner share it. */
import { type AdapterKind, type AdapterManifest, imageEncoderLayout } from "./adapter.ts";
import { type AdapterContent, readAdapterContent, type TensorContent } from "./adapters/adapter-content.ts";
import type { ByteSource } from "./adapters/byte-source.ts";
import { hyperNetworkKey } from "./adapters/hypernetwork-keys.ts";
import { bundledKey, readInversionKeys } from "./adapters/inversion-keys.ts";
import {
  algorithmLabel,
  algorithmOf,
  type LoraKey,
  type LoraPart,
  loraNaming,
  splitLoraKey,
  unservedSuffixes,
} from "./adapters/lora-keys.ts";
import { loraWidths } from "./adapters/lora-widths.ts";
import { FileError, shorten } from "./file-error.ts";
import type { ModelFamily } from "./model.ts";

/** What a manifest says beside the hash and the files. */
export type DetectedAdapter = Omit<AdapterManifest, "hash" | "files">;

/** Reads the headers and detects. Throws FileError naming what is unknown, malformed or could run code. */
export async function detectAdapter(files: readonly { path: string; source: ByteSource }[]): Promise<DetectedAdapter> {
  const contents: AdapterContent[] = [];
  for (const { path, source } of files) {
    try {
      contents.push(await readAdapterContent(path, source));
    } catch (error) {
      if (error instanceof FileError && files.length > 1) throw new FileError(`${path}: ${error.key}`, error.expected, error.got);
      throw error;
    }
  }
  return detectContents(contents);
}

/** The same of headers that were read. Throws FileError. */
export function detectContents(contents: readonly AdapterContent[]): DetectedAdapter {
  const files = contents.filter(content => content.format === "tensors");
  if (files.length === 0) throw new FileError("files", "a file of weights", "none");
  for (const row of detectionRows) {
    const detected = row.detect(files, contents);
    if (detected) return { kind: row.kind, token: null, parameters: countParameters(files), ...detected };
  }
  const [key] = files[0]!.tensors.keys();
  throw new FileError(key ?? "file", `an adapter: ${[...new Set(detectionRows.map(({ kind }) => kind))].join(", ")}`, "other tensors");
}

type Details = Pick<DetectedAdapter, "layout" | "families" | "cross_attention_dim" | "text_widths"> & { token?: string | null };

interface DetectionRow {
  kind: AdapterKind;
  /** Null where the files are of another kind. Throws FileError where they are of this kind but not as it is served. */
  detect(files: readonly TensorContent[], contents: readonly AdapterContent[]): Details | null;
}

/** In the order of asking: the last ones take the most names. */
const detectionRows: readonly DetectionRow[] = [
  { kind: "controlnet", detect: withAll(detectControlNet) },
  { kind: "t2i-adapter", detect: withAll(detectT2iAdapter) },
  { kind: "ip-adapter", detect: withAll(detectIpAdapter) },
  { kind: "ip-adapter", detect: detectImageEncoder },
  { kind: "hypernetwork", detect: withAll(detectHyperNetwork) },
  { kind: "textual-inversion", detect: detectInversion },
  { kind: "lora", detect: (files, contents) => detectLora(files, contents) },
];

type Tensors = TensorContent["tensors"];

/** For kinds whose tensors may lie in several files (shards). */
function withAll(detect: (tensors: Tensors) => Details | null): DetectionRow["detect"] {
  return files => {
    const [only, second] = files;
    return detect(only && !second ? only.tensors : new Map(files.flatMap(({ tensors }) => [...tensors])));
  };
}

/** The first key that a pattern matches, and its tensor's shape. */
function find(tensors: Tensors, pattern: RegExp): readonly number[] | null {
  for (const [key, { shape }] of tensors) if (pattern.test(key)) return shape;
  return null;
}

const unet = (layout: string, cross: number | null): Details => ({
  layout,
  families: familiesOf(cross, []),
  cross_attention_dim: cross,
  text_widths: [],
});

function detectControlNet(tensors: Tensors): Details | null {
  if (tensors.has("lora_controlnet")) throw new FileError("lora_controlnet", "a whole ControlNet", "a Control-LoRA");
  const original = find(tensors, /^(?:control_model\.)?input_hint_block\.0\.weight$/);
  const diffusers = tensors.has("controlnet_cond_embedding.conv_in.weight");
  if (!original && !diffusers) return null;
  const union = tensors.has("task_embedding") || tensors.has("control_model.task_embedding");
  const cross = find(tensors, /attn2\.to_k\.weight$/)?.[1] ?? null;
  return unet(`${original ? "original" : "diffusers"}${union ? "-union" : ""}`, cross);
}

function detectT2iAdapter(tensors: Tensors): Details | null {
  const first = find(tensors, /^(?:adapter\.)?body\.0\./);
  const stem = find(tensors, /^(?:adapter\.)?conv_in\.weight$/);
  if (!first || (!stem && !find(tensors, /^(?:adapter\.)?body\.0\.in_conv\.weight$/))) return null;
  const diffusers = find(tensors, /^(?:adapter\.)?body\.0\.resnets\./) !== null;
  // Pixels are folded into channels: 8 to a side for SD 1, 16 for SDXL.
  const families: ModelFamily[] = stem?.[1] === 192 ? ["sd1"] : stem?.[1] === 768 ? ["sdxl"] : [];
  return { ...unet(diffusers ? "diffusers" : "original", null), families };
}

/** The key that tells each variant, in the order of asking. */
const ipVariants: readonly (readonly [key: string, variant: string])[] = [
  ["image_proj.proj.weight", "base"],
  ["image_proj.proj.3.weight", "full"],
  ["image_proj.perceiver_resampler.proj_in.weight", "faceid-plus"],
  ["image_proj.latents", "plus"],
  ["image_proj.norm.weight", "faceid"],
];

function detectIpAdapter(tensors: Tensors): Details | null {
  const layer = find(tensors, /^ip_adapter\.\d+\.to_k_ip\.weight$/);
  if (!layer) return null;
  const variant = ipVariants.find(([key]) => tensors.has(key))?.[1];
  if (!variant) throw new FileError("image_proj", `one of ${ipVariants.map(([key]) => key).join(", ")}`, "none of them");
  return unet(variant, layer[1] ?? null);
}

/** CLIPVisionModelWithProjection of transformers: what an IP-Adapter is trained on. */
function detectImageEncoder(files: readonly TensorContent[], contents: readonly AdapterContent[]): Details | null {
  const tensors = new Map(files.flatMap(file => [...file.tensors]));
  if (!find(tensors, /^(?:vision_model\.)?embeddings\.class_embedding$/)) return null;
  if (!tensors.has("visual_projection.weight"))
    throw new FileError("visual_projection.weight", "the projection of CLIP's pictures", "none");
  if (!contents.some(({ path, format }) => format === "json" && path === "config.json"))
    throw new FileError("config.json", "the config of a CLIP vision model beside its weights", "none");
  return unet(imageEncoderLayout, null);
}

function detectHyperNetwork(tensors: Tensors): Details | null {
  const keys = [...tensors.keys()];
  const found = keys.map(hyperNetworkKey);
  if (!found.some(key => key !== null)) return null;
  const odd = keys[found.indexOf(null)];
  if (odd !== undefined) throw new FileError(odd, "<width>.<k or v>.linear.<n>.<weight or bias>", "an unknown name");
  const widths = new Set(found.map(key => key!.width));
  const cross =
    Object.keys(crossFamilies)
      .map(Number)
      .find(width => width !== 1280 && widths.has(width)) ?? null;
  return unet("a1111", cross);
}

function detectInversion(files: readonly TensorContent[]): Details | null {
  if (files.length > 2) return null;
  const found = files.map(({ tensors, pickled }) => {
    const name = pickled?.get("name");
    return readInversionKeys(tensors, typeof name === "string" && name !== "" ? name : null);
  });
  const [first, second] = found;
  if (!first || second === null) return null;
  const rows = found.flatMap((file, i) => file!.rows.map(row => ({ ...row, path: files[i]!.path })));
  if (second && rows.length !== 2) throw new FileError("files", "one text encoder's rows in each", `${rows.length} tensors`);
  const widths: (number | null)[] = [];
  for (const [i, { encoder, shape, path }] of rows.entries()) {
    const index = encoder ?? (second ? Number(/_2\.[a-z]+$/.test(path)) : i);
    if (widths[index] !== undefined && widths[index] !== null) throw new FileError(path, "the other text encoder's rows", "the same one's");
    widths[index] = shape.at(-1)!;
  }
  const text = Array.from(widths, width => width ?? null);
  return {
    layout: second ? `${first.layout}-two-files` : first.layout,
    families: familiesOf(null, text),
    cross_attention_dim: null,
    text_widths: text,
    token: found.find(file => file?.token != null)?.token ?? null,
  };
}

const peftConfig = "adapter_config.json";

function detectLora(files: readonly TensorContent[], contents: readonly AdapterContent[]): Details | null {
  const [file, second] = files;
  if (!file || second) return null;
  const modules = loraModules(file.tensors);
  if (!modules) return null;
  const layouts = new Set<string>();
  for (const [module, parts] of modules) {
    const naming = loraNaming(module);
    if (naming === null) throw new FileError([...parts.values()][0]!.key, "a module of Stable Diffusion", shorten(module, 100));
    if (naming === "peft" && !contents.some(({ path, format }) => format === "json" && path === peftConfig))
      throw new FileError(peftConfig, "peft's configuration beside its weights", "none");
    layouts.add(`${naming}/${algorithmLabel(algorithmOf(module, parts), parts)}`);
  }
  const { crossAttention, text } = loraWidths(modules);
  const names = [...modules.keys()];
  const original = names.some(name => loraNaming(name) === "kohya-sdxl");
  const families = familiesOf(crossAttention, text);
  return {
    layout: [...layouts].sort().join("+"),
    families: families.length === 0 && original ? ["sdxl", "sdxl-refiner"] : families,
    cross_attention_dim: crossAttention,
    text_widths: text,
  };
}

/** Null where no key is a LoRA's. Throws FileError where some are and others are not. */
function loraModules(tensors: Tensors): ReadonlyMap<string, ReadonlyMap<LoraPart, { key: string; shape: readonly number[] }>> | null {
  const modules = new Map<string, Map<LoraPart, { key: string; shape: readonly number[] }>>();
  let unknown: string | null = null;
  for (const [key, { shape }] of tensors) {
    const unserved = unservedSuffixes.find(([suffix]) => key.endsWith(suffix));
    if (unserved) throw new FileError(key, "a method that is served", unserved[1]);
    if (bundledKey(key)) continue;
    const split: LoraKey | null = splitLoraKey(key);
    if (!split) {
      unknown ??= key;
      continue;
    }
    const parts = modules.get(split.module) ?? new Map<LoraPart, { key: string; shape: readonly number[] }>();
    if (parts.has(split.part)) throw new FileError(key, `one "${split.part}"`, parts.get(split.part)!.key);
    modules.set(split.module, parts.set(split.part, { key, shape }));
  }
  if (modules.size === 0) return null;
  if (unknown !== null) throw new FileError(unknown, "a part of a LoRA", "an unknown name");
  return modules;
}

/** Families by the width of the text states that their UNets read. */
const crossFamilies: Readonly<Record<number, readonly ModelFamily[]>> = {
  768: ["sd1"],
  1024: ["sd2"],
  2048: ["sdxl"],
  1280: ["sdxl-refiner"],
};

function familiesOf(cross: number | null, text: readonly (number | null)[]): ModelFamily[] {
  if (cross !== null) return [...(crossFamilies[cross] ?? [])];
  const [first = null, second = null] = text;
  if (second === 1280) return first === null ? ["sdxl", "sdxl-refiner"] : ["sdxl"];
  if (second !== null) return [];
  if (first === 768) return ["sd1", "sdxl"];
  if (first === 1280) return ["sdxl", "sdxl-refiner"];
  return first === 1024 ? ["sd2"] : [];
}

function countParameters(files: readonly TensorContent[]): number {
  let sum = 0;
  for (const { tensors } of files) for (const { shape } of tensors.values()) sum += shape.reduce((product, dim) => product * dim, 1);
  return sum;
}
