/** How a ControlNet's file names its tensors: as diffusers does, or as the original release, whose blocks are numbered through. */
import type { Support } from "../../../shared/support.ts";
import type { UnetConfig } from "../../weights/configs.ts";
import { ModelError } from "../../weights/model-error.ts";
import { originalModule, originalUnetBlocks } from "../../weights/original-unet.ts";

/** Rows of docs/support.md. */
export const controlNetLayouts = {
  diffusers: { title: "diffusers folder or file: `controlnet_cond_embedding`", proof: "reference" },
  original: { title: "original release, with or without `control_model.`: `input_hint_block`, `zero_convs`", proof: "reference" },
} as const satisfies Record<string, Support>;
export type ControlNetLayout = keyof typeof controlNetLayouts;

/** What may be special about a net of either layout. */
export const controlNetForms = {
  difference: { title: "difference from the base (`difference` is a key)", proof: "reference" },
  union: { title: "union of several controls, one at a time: `task_embedding`", proof: "reference" },
  "global-pool": { title: "residuals averaged over the picture (shuffle)", proof: "reference" },
  bgr: { title: "control maps in the order blue, green, red", proof: "reference" },
} as const satisfies Record<string, Support>;

export interface ControlNetKeys {
  layout: ControlNetLayout;
  keyFor(name: string): string;
  has(name: string): boolean;
}

/** Tells the layout from the keys. Throws ModelError where they are of neither. */
export function controlNetKeys(path: string, keys: readonly string[], levels: UnetConfig["levels"]): ControlNetKeys {
  const present = new Set(keys);
  if (present.has("controlnet_cond_embedding.conv_in.weight"))
    return { layout: "diffusers", keyFor: name => name, has: name => present.has(name) };
  const hint = keys.find(key => key.endsWith("input_hint_block.0.weight"));
  if (hint === undefined)
    throw new ModelError(
      path,
      "controlnet_cond_embedding.conv_in.weight",
      "this key or input_hint_block.0.weight of a ControlNet",
      "neither",
    );
  const prefix = hint.slice(0, -"input_hint_block.0.weight".length);
  const blocks = originalUnetBlocks(levels);
  // The control map's encoder ends with the highest number, whose activations are numbered too.
  const lastHint = Math.max(
    ...keys.filter(key => key.startsWith(`${prefix}input_hint_block.`)).map(key => Number(key.slice(prefix.length).split(".")[1])),
  );
  const keyFor = (name: string): string => `${prefix}${originalName(name, blocks, lastHint)}`;
  return { layout: "original", keyFor, has: name => present.has(keyFor(name)) };
}

/** The encoder's blocks are named as the UNet's; the rest is a ControlNet's own. */
function originalName(name: string, blocks: ReadonlyMap<string, string>, lastHint: number): string {
  const module = name.replace(/\.(?:weight|bias)$/, "");
  const ofUnet = originalModule(module, blocks);
  if (ofUnet !== undefined) return ofUnet + name.slice(module.length);
  return name
    .replace(/^controlnet_mid_block\./, "middle_block_out.0.")
    .replace(/^controlnet_down_blocks\.(\d+)\./, "zero_convs.$1.0.")
    .replace(/^controlnet_cond_embedding\.conv_in\./, "input_hint_block.0.")
    .replace(/^controlnet_cond_embedding\.blocks\.(\d+)\./, (_, index: string) => `input_hint_block.${2 * Number(index) + 2}.`)
    .replace(/^controlnet_cond_embedding\.conv_out\./, `input_hint_block.${lastHint}.`);
}
