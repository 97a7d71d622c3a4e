/** Which widths of the base a LoRA's shapes tell: of the text states that the UNet reads, and of each text encoder. */
import type { LoraPart } from "./lora-keys.ts";

type Shapes = ReadonlyMap<LoraPart, { shape: readonly number[] }>;

export interface LoraWidths {
  crossAttention: number | null;
  /** By text encoder; null where it is left alone or its shapes don't tell. */
  text: (number | null)[];
}

const crossAttention = /attn2[._]to_[kv]$/;
const textInput = /(?:q_proj|k_proj|v_proj|mlp[._]fc1)$/;
const firstText =
  /^(?:base_model\.model\.)?(?:lora_te1?[_.]|text_encoder\.|text_encoders\.clip_[lh]\.|clip_[lh]\.|text_model\.|encoder\.layers\.)/;
const secondText = /^(?:lora_te2[_.]|text_encoder_2\.|text_encoders\.clip_g\.|clip_g\.)/;

export function loraWidths(modules: ReadonlyMap<string, Shapes>): LoraWidths {
  const widths: LoraWidths = { crossAttention: null, text: [] };
  const touched = [false, false];
  for (const [module, parts] of modules) {
    if (crossAttention.test(module)) widths.crossAttention ??= inputWidth(parts);
    const encoder = firstText.test(module) ? 0 : secondText.test(module) ? 1 : null;
    if (encoder === null) continue;
    touched[encoder] = true;
    if (textInput.test(module)) widths.text[encoder] ??= inputWidth(parts);
  }
  const count = touched.lastIndexOf(true) + 1;
  widths.text = Array.from({ length: count }, (_, i) => widths.text[i] ?? null);
  return widths;
}

/** Columns of the weight that the parts change; null where they don't tell. */
function inputWidth(parts: Shapes): number | null {
  const columns = (part: LoraPart): number | undefined => parts.get(part)?.shape[1];
  const direct = columns("down") ?? columns("diff") ?? columns("hadaW1b");
  if (direct !== undefined) return direct;
  const [left, right] = [columns("lokrW1") ?? columns("lokrW1b"), columns("lokrW2") ?? columns("lokrW2b")];
  if (left !== undefined && right !== undefined) return left * right;
  // a1 is [in, rank] or, in the first files, [rank, in]: a rank is below the width.
  const glora = parts.get("gloraA1")?.shape;
  return glora ? Math.max(...glora) : null;
}
