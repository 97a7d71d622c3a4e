/**
 * Opens a single file in the original layout. It holds no config: the family follows from keys and widths, and with it the
 * standard configs; `<name>.json` beside `<name>.safetensors` may give any of them instead, in diffusers' form.
 */
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { z } from "zod";
import { type ModelFamily, modelFamilies } from "../../shared/model.ts";
import { checkTextEncoderConfig, checkUnetConfig, checkVaeConfig, parseConfig } from "./configs.ts";
import { tokenizerFiles, tokenizerSource } from "./diffusers-folder.ts";
import { ModelError } from "./model-error.ts";
import { familyOf, type ModelSource, requireTextWidth, type TextEncoderPart, type TokenizerSource } from "./model-source.ts";
import { originalKeys, type TextEncoderKind, unetPrefix } from "./original-keys.ts";
import { type SafetensorsFile, withSafetensors } from "./safetensors.ts";
import { type StandardConfigs, standardConfigs } from "./standard-configs.ts";

const config = z.record(z.string(), z.unknown());
/** Files of this name that other programs write have other members, which are passed over. */
const besideSchema = z.object({
  unet: config.optional(),
  vae: config.optional(),
  text_encoder: config.optional(),
  text_encoder_2: config.optional(),
  scheduler: config.optional(),
  /** Folders, relative to this file. */
  tokenizer: z.string().optional(),
  tokenizer_2: z.string().optional(),
  prediction_type: z.enum(["epsilon", "v_prediction", "sample"]).optional(),
  force_zeros_for_empty_prompt: z.boolean().optional(),
});
type Beside = z.output<typeof besideSchema>;

/** @param path absolute. Throws ModelError. */
export function openSingleFile(path: string): ModelSource {
  if (!path.endsWith(".safetensors"))
    throw new ModelError(path, "file", "a .safetensors file or a diffusers folder", "another kind of file");
  const besideFile = path.replace(/\.safetensors$/, ".json");
  const hasBeside = existsSync(besideFile);
  const beside = hasBeside ? parseConfig(besideFile, besideSchema) : {};
  return withSafetensors(path, file => {
    const encoders = findTextEncoders(file);
    const standard: StandardConfigs | null = beside.unet ? null : standardConfigs[familyByWidth(file)];
    const given = (name: "unet" | "vae" | "text_encoder" | "text_encoder_2", fallback: unknown): [file: string, json: unknown] => {
      if (!beside[name] && !fallback)
        throw new ModelError(besideFile, name, "a config, since this file gives that of the UNet", hasBeside ? "none" : "no file");
      return beside[name] ? [`${besideFile}#${name}`, beside[name]] : [path, fallback];
    };
    const unet = checkUnetConfig(...given("unet", standard && { ...standard.unet, ...unetByKeys(file, beside, standard) }));
    const vae = checkVaeConfig(...given("vae", standard?.vae));
    const textEncoders = encoders.map(({ component }): TextEncoderPart => {
      const [name, projects] = component === "textEncoder" ? (["text_encoder", false] as const) : (["text_encoder_2", true] as const);
      return { component, config: checkTextEncoderConfig(...given(name, standard?.[component]), { projects }) };
    });
    requireTextWidth(beside.unet ? besideFile : path, unet, textEncoders);
    const parts = encoders.map((encoder, i) => ({ ...encoder, config: textEncoders[i]!.config }));
    const tokenizers = textEncoders.map(part => tokenizerOf(part, beside, besideFile));
    return {
      path,
      layout: "single-file",
      family: familyOf(unet, textEncoders),
      unet,
      vae,
      textEncoders,
      tokenizers,
      weights: [{ file: path, keys: originalKeys({ unet, vae, textEncoders: parts }) }],
      schedulerConfig: scheduler(file, beside, standard),
      schedulerFile: hasBeside ? besideFile : path,
      forceZerosForEmptyPrompt: beside.force_zeros_for_empty_prompt ?? standard?.forceZerosForEmptyPrompt ?? unet.added !== null,
      previewDecoder: [path.replace(/\.safetensors$/, ".preview.safetensors")].find(existsSync) ?? null,
      files: [
        ["model.safetensors", path],
        ...(hasBeside ? ([["model.json", besideFile]] as const) : []),
        ...tokenizers.flatMap((tokenizer, i) => hashedTokenizer(tokenizer, textEncoders[i]!)),
      ],
    };
  });
}

interface FoundEncoder {
  component: TextEncoderPart["component"];
  prefix: string;
  kind: TextEncoderKind;
}

/** Where the text encoders lie, by their places in the conditioner. */
function findTextEncoders(file: SafetensorsFile): FoundEncoder[] {
  const found = new Map<string, FoundEncoder>();
  for (const key of file.entries.keys()) {
    const [, prefix, place, kind] = /^((cond_stage_model|conditioner\.embedders\.\d+)\.(transformer|model)\.)/.exec(key) ?? [];
    if (prefix === undefined || place === undefined || found.has(prefix)) continue;
    // SDXL's base has CLIP and then OpenCLIP, its refiner only the latter.
    const second = place !== "cond_stage_model" && (kind === "model" || place !== "conditioner.embedders.0");
    found.set(prefix, {
      component: second ? "textEncoder2" : "textEncoder",
      prefix,
      kind: kind === "model" ? "openclip" : "transformers",
    });
  }
  if (found.size === 0) throw new ModelError(file.path, "cond_stage_model.", "a text encoder here or at conditioner.embedders.", "none");
  const encoders = [...found.values()].sort((a, b) => (a.prefix < b.prefix ? -1 : 1));
  const [first, again] = encoders;
  if (encoders.length > 2 || first?.component === again?.component)
    throw new ModelError(file.path, encoders.at(-1)!.prefix, "one text encoder in each place", `${encoders.length} of them`);
  return encoders;
}

/** Width of the text states by family. */
const contextWidths = { sd1: 768, sd2: 1024, sdxl: 2048, "sdxl-refiner": 1280 } as const satisfies Record<ModelFamily, number>;

function familyByWidth(file: SafetensorsFile): ModelFamily {
  const found = [...file.entries.values()].find(({ name }) => name.startsWith(unetPrefix) && name.endsWith(".attn2.to_k.weight"));
  if (!found) throw new ModelError(file.path, unetPrefix, "a UNet with cross-attention at this prefix", "none");
  const family = modelFamilies.find(name => contextWidths[name] === found.shape[1]);
  if (family) return family;
  const widths = Object.values(contextWidths).join(", ");
  throw new ModelError(file.path, found.name, `a width of ${widths}, or a .json file of configs beside it`, `[${found.shape}]`);
}

function unetByKeys(file: SafetensorsFile, beside: Beside, standard: StandardConfigs): Record<string, unknown> {
  const { shape } = file.entry(`${unetPrefix}input_blocks.0.0.weight`);
  const guidance = file.entries.get(`${unetPrefix}time_embed.cond_proj.weight`);
  return {
    in_channels: shape[1],
    sample_size: sampleSize(predictionType(file, beside), standard),
    ...(guidance && { time_cond_proj_dim: guidance.shape[1] }),
  };
}

/** Latent pixels a side: of the two resolutions of Stable Diffusion 2, only the greater one predicts v. */
function sampleSize(prediction: string, standard: StandardConfigs): number {
  if (standard.unet.addition_embed_type) return 128;
  return standard.unet === standardConfigs.sd2.unet && prediction === "v_prediction" ? 96 : 64;
}

function scheduler(file: SafetensorsFile, beside: Beside, standard: StandardConfigs | null): Record<string, unknown> {
  const zeroTerminal = file.entries.has("ztsnr") && { rescale_betas_zero_snr: true, timestep_spacing: "trailing" };
  return {
    ...(beside.scheduler ?? {
      ...(standard ?? standardConfigs.sd1).scheduler,
      ...zeroTerminal,
      prediction_type: predictionType(file, beside),
    }),
    ...(beside.prediction_type && { prediction_type: beside.prediction_type }),
  };
}

/**
 * What the UNet predicts, where no config says it: v where the file is marked so. Stable Diffusion 2 has no mark: its 768 px
 * model and what was trained from it predict v; they differ from the 512 px one in the spread of one norm's bias (the rule and
 * the bound of ComfyUI's supported_models.py), and none of its inpainting models does.
 */
function predictionType(file: SafetensorsFile, { prediction_type, scheduler }: Beside): string {
  const said = prediction_type ?? scheduler?.prediction_type;
  if (typeof said === "string") return said;
  if (file.entries.has("v_pred")) return "v_prediction";
  const bias = `${unetPrefix}output_blocks.11.1.transformer_blocks.0.norm1.bias`;
  const inputs = file.entries.get(`${unetPrefix}input_blocks.0.0.weight`)?.shape[1];
  if (inputs !== 4 || !file.entries.has(bias) || familyByWidth(file) !== "sd2") return "epsilon";
  return deviation(file.readFloat32(bias)) > 0.09 ? "v_prediction" : "epsilon";
}

function deviation(values: Float32Array): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}

/** The tokenizer that is given, else CLIP's own; OpenCLIP's fills with "!", which is id 0. */
function tokenizerOf({ component, config }: TextEncoderPart, beside: Beside, besideFile: string): TokenizerSource {
  const folder = component === "textEncoder" ? beside.tokenizer : (beside.tokenizer_2 ?? beside.tokenizer);
  if (folder !== undefined) return tokenizerSource(resolve(dirname(besideFile), folder), config.maxLength);
  return { folder: null, pad: config.activation === "quick_gelu" ? null : "!", maxLength: config.maxLength };
}

function hashedTokenizer({ folder }: TokenizerSource, { component }: TextEncoderPart): [string, string][] {
  if (folder === null) return [];
  const name = component === "textEncoder" ? "tokenizer" : "tokenizer_2";
  return tokenizerFiles.map((file): [string, string] => [`${name}/${file}`, join(folder, file)]).filter(([, file]) => existsSync(file));
}
