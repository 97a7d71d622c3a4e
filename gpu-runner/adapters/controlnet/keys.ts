/** How a ControlNet's file names its tensors: as diffusers does, or as the original release, whose blocks are numbered through. */
import type { Support } from "../../../shared/support.ts";
import type { UnetConfig } from "../../weights/configs.ts";
import { ModelError } from "../../weights/model-error.ts";

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

/** Parts of a residual block. */
const resnetParts: Readonly<Record<string, string>> = {
  norm1: "in_layers.0",
  conv1: "in_layers.2",
  time_emb_proj: "emb_layers.1",
  norm2: "out_layers.0",
  conv2: "out_layers.3",
  conv_shortcut: "skip_connection",
};

const fixedNames: readonly (readonly [RegExp, string])[] = [
  [/^conv_in\./, "input_blocks.0.0."],
  [/^time_embedding\.linear_1\./, "time_embed.0."],
  [/^time_embedding\.linear_2\./, "time_embed.2."],
  [/^add_embedding\.linear_1\./, "label_emb.0.0."],
  [/^add_embedding\.linear_2\./, "label_emb.0.2."],
  [/^mid_block\.resnets\.0\./, "middle_block.0."],
  [/^mid_block\.attentions\.0\./, "middle_block.1."],
  [/^mid_block\.resnets\.1\./, "middle_block.2."],
  [/^controlnet_mid_block\./, "middle_block_out.0."],
  [/^controlnet_cond_embedding\.conv_in\./, "input_hint_block.0."],
];

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
  const blocks = originalBlocks(levels);
  // The control map's encoder ends with the highest number, whose activations are numbered too.
  const lastHint = Math.max(
    ...keys.filter(key => key.startsWith(`${prefix}input_hint_block.`)).map(key => Number(key.slice(prefix.length).split(".")[1])),
  );
  const keyFor = (name: string): string => `${prefix}${originalName(name, blocks, lastHint)}`;
  return { layout: "original", keyFor, has: name => present.has(keyFor(name)) };
}

function originalName(name: string, blocks: ReadonlyMap<string, string>, lastHint: number): string {
  for (const [pattern, original] of fixedNames) if (pattern.test(name)) return withResnetParts(name.replace(pattern, original));
  const down = /^(down_blocks\.\d+\.(?:resnets|attentions|downsamplers)\.\d+)\.(?:conv\.(?=weight|bias))?/.exec(name);
  if (down) return withResnetParts(`${blocks.get(down[1]!)}.${name.slice(down[0].length)}`);
  return name
    .replace(/^controlnet_down_blocks\.(\d+)\./, "zero_convs.$1.0.")
    .replace(/^controlnet_cond_embedding\.blocks\.(\d+)\./, (_, index: string) => `input_hint_block.${2 * Number(index) + 2}.`)
    .replace(/^controlnet_cond_embedding\.conv_out\./, `input_hint_block.${lastHint}.`);
}

function withResnetParts(name: string): string {
  return name.replace(/\.(norm1|conv1|time_emb_proj|norm2|conv2|conv_shortcut)\.(?=weight$|bias$)/, (whole, part: string) =>
    name.includes("transformer_blocks") ? whole : `.${resnetParts[part]}.`,
  );
}

/** diffusers' places to the original's, which count layers and downsamplers in one row. */
function originalBlocks(levels: UnetConfig["levels"]): ReadonlyMap<string, string> {
  const blocks = new Map<string, string>();
  let index = 1;
  levels.forEach((level, i) => {
    for (let layer = 0; layer < level.layers; layer++, index++) {
      blocks.set(`down_blocks.${i}.resnets.${layer}`, `input_blocks.${index}.0`);
      blocks.set(`down_blocks.${i}.attentions.${layer}`, `input_blocks.${index}.1`);
    }
    if (i < levels.length - 1) blocks.set(`down_blocks.${i}.downsamplers.0`, `input_blocks.${index++}.0.op`);
  });
  return blocks;
}
