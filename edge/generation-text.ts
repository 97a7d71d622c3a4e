import { canonicalize } from "../shared/canonical.ts";
import type { ResolvedRequest } from "../shared/generation.ts";
import type { ModelManifest } from "../shared/model.ts";
import type { PictureRequest } from "../shared/picture.ts";

/** Collects what is wrong with a field. */
export type Wrong = (field: string, expected: string, got: unknown) => void;

type Prompts = Pick<PictureRequest, "prompt" | "prompt_2" | "negative_prompt" | "negative_prompt_2">;

/** The prompts of a picture: what is the same for both text encoders stands once, and an absent negative prompt is what the family takes it for. */
export function promptsOf(item: Pick<ResolvedRequest, keyof Prompts>, model: ModelManifest, wrong: Wrong): Prompts {
  const { prompt, prompt_2 = null, negative_prompt = null, negative_prompt_2 = null } = item;
  for (const [field, value] of Object.entries({ prompt_2, negative_prompt_2 }))
    if (value !== null && model.text_widths.length < 2)
      wrong(field, `nothing, since the model ${model.name} has one text encoder`, value.slice(0, 20));
  const second = negative_prompt_2 === (negative_prompt ?? "") && negative_prompt !== null ? null : negative_prompt_2;
  return {
    prompt,
    prompt_2: prompt_2 === prompt ? null : prompt_2,
    negative_prompt: negative_prompt ?? (model.family === "sdxl" && second === null ? null : ""),
    negative_prompt_2: second,
  };
}

/** SDXL's added conditions with what is absent filled in as diffusers does; null where they say no more than nothing would. */
export function microConditioning(
  { micro_conditioning: given, width, height }: Pick<ResolvedRequest, "micro_conditioning" | "width" | "height">,
  model: ModelManifest,
  wrong: Wrong,
): PictureRequest["micro_conditioning"] {
  if (!given) return null;
  if (!model.family.startsWith("sdxl")) {
    wrong("micro_conditioning", `nothing, since the model ${model.name} is ${model.family}`, given);
    return null;
  }
  const filled = fillConditions(given, [height, width]);
  return canonicalize(filled) === canonicalize(fillConditions({}, [height, width])) ? null : filled;
}

function fillConditions(given: NonNullable<ResolvedRequest["micro_conditioning"]>, whole: [number, number]) {
  const none: [number, number] = [0, 0];
  const { original_size = whole, crops_coords_top_left = none, target_size = whole } = given;
  return {
    ...{ original_size, crops_coords_top_left, target_size },
    negative_original_size: given.negative_original_size ?? original_size,
    negative_crops_coords_top_left: given.negative_crops_coords_top_left ?? crops_coords_top_left,
    negative_target_size: given.negative_target_size ?? target_size,
    aesthetic_score: given.aesthetic_score ?? 6,
    negative_aesthetic_score: given.negative_aesthetic_score ?? 2.5,
  };
}
