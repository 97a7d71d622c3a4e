import type { ResolvedRequest } from "../shared/generation.ts";
import type { ModelManifest, ModelTask } from "../shared/model.ts";
import type { PictureRequest } from "../shared/picture.ts";
import type { Wrong } from "./generation-text.ts";
import type { InputFile } from "./inputs.ts";

/** What one picture is asked for: the request with what `per_image` says of it. */
export type Item = ResolvedRequest;

type Source = Pick<PictureRequest, "source" | "mask" | "outpaint" | "image_guidance_scale">;

/** What is done with the picture that a request starts from, and whether the model does that. */
export function sourceOf(item: Item, model: ModelManifest, inputs: ReadonlyMap<string, InputFile>, wrong: Wrong): Source {
  const task = taskOf(item, model);
  if (!model.tasks.includes(task))
    wrong(decidingField(item, task, model), `a request for ${model.tasks.join(" or ")}, which the model ${model.name} does`, task);
  checkAlone(item, task, wrong);
  const hash = (field: "image" | "mask") => {
    const file = inputs.get(item[field] ?? "");
    if (file && !file.mediaType.startsWith("image/")) wrong(field, "a picture", file.mediaType);
    return file?.sha256;
  };
  const [image, mask] = [hash("image"), hash("mask")];
  const { mask_blur, padding_mask_crop, mask_fill } = item;
  return {
    source: image === undefined ? null : { image, strength: item.strength ?? (task === "image-to-image" ? 0.8 : 1) },
    mask: mask === undefined ? null : { image: mask, blur: mask_blur, padding_crop: padding_mask_crop, fill: mask_fill },
    outpaint: surroundings(item),
    image_guidance_scale: task === "edit" ? (item.image_guidance_scale ?? 1.5) : null,
  };
}

/** What is painted around the picture; null where nothing is. */
function surroundings({ outpaint }: Item): PictureRequest["outpaint"] {
  return outpaint && Object.values(outpaint).some(pixels => pixels > 0) ? outpaint : null;
}

function taskOf(item: Item, { tasks }: ModelManifest): ModelTask {
  if (item.mask !== null || surroundings(item)) return "inpaint";
  if (item.image === null) return "text-to-image";
  return tasks.includes("edit") ? "edit" : "image-to-image";
}

/** The field that would have to change for the model to do it. */
function decidingField({ mask }: Item, task: ModelTask, { tasks }: ModelManifest): string {
  if (task === "inpaint") return mask === null ? "outpaint" : "mask";
  return task !== "text-to-image" && tasks.includes("inpaint") ? "mask" : "image";
}

/** Settings that say nothing without the picture that they are about. */
function checkAlone(item: Item, task: ModelTask, wrong: Wrong): void {
  const { image, mask, strength, mask_blur, padding_mask_crop, mask_fill, image_guidance_scale } = item;
  if (image === null && task === "inpaint") wrong("image", "a picture, which mask and outpaint change", undefined);
  if (image === null && strength !== undefined) wrong("strength", "nothing without an image", strength);
  if (task === "edit" && strength !== undefined && strength !== 1) wrong("strength", "1, since an edit model starts from noise", strength);
  if (task !== "edit" && image_guidance_scale != null)
    wrong("image_guidance_scale", "nothing: only an edit model has it", image_guidance_scale);
  if (mask !== null) return;
  if (mask_blur !== 0) wrong("mask_blur", "0 without a mask", mask_blur);
  if (padding_mask_crop !== null) wrong("padding_mask_crop", "null without a mask", padding_mask_crop);
  if (mask_fill !== "original") wrong("mask_fill", "original without a mask", mask_fill);
}
