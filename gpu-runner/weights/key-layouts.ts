/** Key layouts of the components of a diffusers folder, as published over the years. */
import type { KeyLayout } from "./weights.ts";

/** The autoencoder's attention was renamed in diffusers 0.18; files of both ages are in use. */
const oldAttentionNames: readonly (readonly [string, string])[] = [
  [".to_q.", ".query."],
  [".to_k.", ".key."],
  [".to_v.", ".value."],
  [".to_out.0.", ".proj_attn."],
];

function vaeKeys(name: string): string[] {
  const renamed = oldAttentionNames.reduce((key, [now, before]) => key.replace(now, before), name);
  return [name, renamed];
}

export const keyLayouts = {
  unet: { keysFor: name => [name], ignores: () => false },
  // Released files have the prefix; transformers 5 drops it. `position_ids` is a buffer that counts from 0.
  textEncoder: { keysFor: name => [`text_model.${name}`, name], ignores: key => key.endsWith("embeddings.position_ids") },
  vaeEncoder: { keysFor: vaeKeys, ignores: key => /^(decoder|post_quant_conv)\./.test(key) },
  vaeDecoder: { keysFor: vaeKeys, ignores: key => /^(encoder|quant_conv)\./.test(key) },
} satisfies Record<string, KeyLayout>;
