/**
 * What becomes of the keys of a weight file: which tensor of which part each is, by the names that the graphs use (diffusers'
 * names, for text encoders without `text_model.`), or why it is of no use. The original layout's tables stand in `original-keys.ts`.
 */

/** Parts of a model that have weights of their own. */
export const componentNames = ["unet", "vae", "textEncoder", "textEncoder2"] as const;
export type ComponentName = (typeof componentNames)[number];

/** A tensor of a part, as a whole key or a piece of one. */
export interface KeyUse {
  component: ComponentName;
  name: string;
  /** One of equal pieces along the first axis, where a file holds several tensors as one. */
  piece?: { index: number; of: number };
  /** Stored as [in, out]. */
  transposed?: boolean;
}

/** The tensors that a key holds, or why it is passed over; null: nobody knows it. */
export type KeyFate = readonly KeyUse[] | { skipped: string } | null;
export type KeyLayout = (key: string) => KeyFate;

/** The autoencoder's attention was renamed in diffusers 0.18; files of both ages are in use. */
const oldAttentionNames: readonly (readonly [before: RegExp, now: string])[] = [
  [/\.query\.(weight|bias)$/, ".to_q.$1"],
  [/\.key\.(weight|bias)$/, ".to_k.$1"],
  [/\.value\.(weight|bias)$/, ".to_v.$1"],
  [/\.proj_attn\.(weight|bias)$/, ".to_out.0.$1"],
];

/** Keys of transformers' CLIP that no text encoder here computes with. */
const uselessTextKeys: readonly (readonly [key: RegExp, why: string])[] = [
  [/(^|\.)position_ids$/, "a buffer that counts from 0"],
  [/^logit_scale$/, "CLIP's training temperature"],
  [/^(vision_model|visual_projection)\./, "CLIP's image side"],
];

/** transformers' CLIPTextModel. Released files have the prefix `text_model.`; transformers 5 drops it. */
export function textEncoderKeys(component: ComponentName, config: { projectionWidth: number | null }): KeyLayout {
  return key => {
    const useless = uselessTextKeys.find(([pattern]) => pattern.test(key));
    if (useless) return { skipped: useless[1] };
    if (key === "text_projection.weight" && config.projectionWidth === null) return { skipped: "this base reads the text unprojected" };
    return [{ component, name: key.replace(/^text_model\./, "") }];
  };
}

/** diffusers' AutoencoderKL of all ages. */
export function vaeKeys(key: string): KeyFate {
  return [{ component: "vae", name: oldAttentionNames.reduce((name, [before, now]) => name.replace(before, now), key) }];
}

/** diffusers' UNet2DConditionModel: the names that the graphs use. */
export function unetKeys(key: string): KeyFate {
  return [{ component: "unet", name: key }];
}
