/**
 * Keys of single files: the names of CompVis' latent-diffusion and Stability's generative-models for UNet and autoencoder,
 * transformers' or OpenCLIP's for the text encoders. Which block is which follows from the configs alone.
 */
import type { TextEncoderConfig, UnetConfig, VaeConfig } from "./configs.ts";
import { type ComponentName, type KeyFate, type KeyLayout, textEncoderKeys } from "./key-layouts.ts";
import { originalResnetLayers, originalUnetBlocks } from "./original-unet.ts";

/** A prefix of keys, and the prefix of names that stands for it; both end at a dot. */
type Prefixes = ReadonlyMap<string, string>;

export const unetPrefix = "model.diffusion_model.";
export const vaePrefix = "first_stage_model.";

export interface OriginalParts {
  unet: UnetConfig;
  vae: VaeConfig;
  textEncoders: readonly { component: ComponentName; prefix: string; kind: TextEncoderKind; config: TextEncoderConfig }[];
}
export type TextEncoderKind = "transformers" | "openclip";

/** Keys of a whole single file. */
export function originalKeys({ unet, vae, textEncoders }: OriginalParts): KeyLayout {
  const unetNames = { ...unetTable(unet), prefix: unetPrefix, component: "unet" as const };
  const vaeNames = { ...vaeTable(vae), prefix: vaePrefix, component: "vae" as const };
  const encoders = textEncoders.map(({ component, prefix, kind, config }) => ({
    prefix,
    keys: kind === "openclip" ? openClipKeys(component, config) : textEncoderKeys(component, config),
  }));
  return key => {
    const useless = uselessKeys.find(([pattern]) => pattern.test(key));
    if (useless) return { skipped: useless[1] };
    for (const { prefix, component, blocks, inner } of [unetNames, vaeNames]) {
      if (!key.startsWith(prefix)) continue;
      const name = renamed(key.slice(prefix.length), blocks, inner);
      return name === null ? null : [{ component, name }];
    }
    const encoder = encoders.find(({ prefix }) => key.startsWith(prefix));
    return encoder ? encoder.keys(key.slice(encoder.prefix.length)) : null;
  };
}

/** Families of keys that are known and of no use for drawing. */
const uselessKeys: readonly (readonly [key: RegExp, why: string])[] = [
  [/^model_ema\./, "a second copy of the UNet: the running mean of its training"],
  [
    /^(betas|alphas_cumprod(_prev)?|(sqrt|log)_\w*alphas_cumprod|sqrt_recipm1_alphas_cumprod|lvlb_weights|logvar)$/,
    "computed from the noise schedule",
  ],
  [/^posterior_(variance|log_variance_clipped|mean_coef[12])$/, "computed from the noise schedule"],
  [/^(denoiser\.sigmas|denoiser\.log_sigmas|model\.betas|scale_factor)$/, "computed from the noise schedule"],
  [/^(global_step|epoch|lr_schedulers|optimizer_states|callbacks|loops)(\.|$)/, "training state"],
  [/^first_stage_model\.loss\./, "a loss of the autoencoder's training"],
  [/^first_stage_model\.model_ema\./, "a second copy of the autoencoder"],
  [/^(v_pred|ztsnr)$/, "a mark of how the model was trained, which is heeded"],
];

/** The longest prefix that the blocks know, then the names within that block. */
function renamed(key: string, blocks: Prefixes, inner: Prefixes): string | null {
  for (let end = key.lastIndexOf("."); end > 0; end = key.lastIndexOf(".", end - 1)) {
    const block = blocks.get(key.slice(0, end + 1));
    if (block === undefined) continue;
    const rest = key.slice(end + 1);
    for (const [before, now] of inner) if (rest.startsWith(before)) return block + now + rest.slice(before.length);
    return block + rest;
  }
  return null;
}

/** From the original names to diffusers'. */
function unetTable({ levels }: UnetConfig): { blocks: Prefixes; inner: Prefixes } {
  const turned = (names: Iterable<readonly [string, string]>): Prefixes =>
    new Map([...names].map(([diffusers, original]) => [`${original}.`, `${diffusers}.`]));
  return { blocks: turned(originalUnetBlocks(levels)), inner: turned(Object.entries(originalResnetLayers)) };
}

/** Layers of latent-diffusion's autoencoder blocks. */
const vaeInner: Prefixes = new Map([
  ["nin_shortcut.", "conv_shortcut."],
  ["norm.", "group_norm."],
  ["q.", "to_q."],
  ["k.", "to_k."],
  ["v.", "to_v."],
  ["proj_out.", "to_out.0."],
]);

export function vaeTable({ channels, layersPerBlock }: VaeConfig): { blocks: Prefixes; inner: Prefixes } {
  const blocks = new Map([
    ["quant_conv.", "quant_conv."],
    ["post_quant_conv.", "post_quant_conv."],
  ]);
  for (const side of ["encoder", "decoder"]) {
    blocks.set(`${side}.conv_in.`, `${side}.conv_in.`);
    blocks.set(`${side}.mid.block_1.`, `${side}.mid_block.resnets.0.`);
    blocks.set(`${side}.mid.attn_1.`, `${side}.mid_block.attentions.0.`);
    blocks.set(`${side}.mid.block_2.`, `${side}.mid_block.resnets.1.`);
    blocks.set(`${side}.norm_out.`, `${side}.conv_norm_out.`);
    blocks.set(`${side}.conv_out.`, `${side}.conv_out.`);
  }
  const last = channels.length - 1;
  for (let i = 0; i <= last; i++) {
    for (let j = 0; j < layersPerBlock; j++) blocks.set(`encoder.down.${i}.block.${j}.`, `encoder.down_blocks.${i}.resnets.${j}.`);
    blocks.set(`encoder.down.${i}.downsample.conv.`, `encoder.down_blocks.${i}.downsamplers.0.conv.`);
    // Counted from the lowest resolution in the names, from the highest in the keys.
    for (let j = 0; j <= layersPerBlock; j++) blocks.set(`decoder.up.${last - i}.block.${j}.`, `decoder.up_blocks.${i}.resnets.${j}.`);
    blocks.set(`decoder.up.${last - i}.upsample.conv.`, `decoder.up_blocks.${i}.upsamplers.0.conv.`);
  }
  return { blocks, inner: vaeInner };
}

/** Members of OpenCLIP's residual blocks; of the attention's joint projection, see below. */
export const openClipInner: readonly (readonly [string, string])[] = [
  ["ln_1.", "layer_norm1."],
  ["ln_2.", "layer_norm2."],
  ["attn.out_proj.", "self_attn.out_proj."],
  ["mlp.c_fc.", "mlp.fc1."],
  ["mlp.c_proj.", "mlp.fc2."],
];

/** Those outside of the blocks. */
export const openClipOuter: Readonly<Record<string, string>> = {
  positional_embedding: "embeddings.position_embedding.weight",
  "token_embedding.weight": "embeddings.token_embedding.weight",
  "ln_final.weight": "final_layer_norm.weight",
  "ln_final.bias": "final_layer_norm.bias",
};

/** OpenCLIP's text transformer (Ilharco et al. 2021). */
function openClipKeys(component: ComponentName, { layers, projectionWidth }: TextEncoderConfig): KeyLayout {
  return key => {
    if (key === "logit_scale") return { skipped: "CLIP's training temperature" };
    if (key === "attn_mask") return { skipped: "a buffer: the causal mask" };
    if (/^text_projection(\.weight)?$/.test(key)) {
      if (projectionWidth === null) return { skipped: "this base reads the text unprojected" };
      // OpenCLIP multiplies from the right; some files were saved from a linear layer, which holds it the other way round.
      return [{ component, name: "text_projection.weight", transposed: key === "text_projection" }];
    }
    const name = openClipOuter[key];
    if (name !== undefined) return [{ component, name }];
    const [, index, rest] = /^transformer\.resblocks\.(\d+)\.(.+)$/.exec(key) ?? [];
    if (index === undefined || rest === undefined) return null;
    // Stable Diffusion 2 reads the last layer but one, so published folders leave the last one out; single files hold it.
    if (Number(index) === layers && projectionWidth === null) return { skipped: "a layer that this base does not run" };
    return openClipLayerKey(component, `encoder.layers.${index}.`, rest);
  };
}

function openClipLayerKey(component: ComponentName, layer: string, key: string): KeyFate {
  const [, kind] = /^attn\.in_proj_(weight|bias)$/.exec(key) ?? [];
  if (kind !== undefined)
    return ["q_proj", "k_proj", "v_proj"].map((name, index) => ({
      component,
      name: `${layer}self_attn.${name}.${kind}`,
      piece: { index, of: 3 },
    }));
  const renaming = openClipInner.find(([before]) => key.startsWith(before));
  return renaming ? [{ component, name: layer + renaming[1] + key.slice(renaming[0].length) }] : null;
}
