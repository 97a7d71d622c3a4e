/** What a model can be asked for, beyond what the request's schema says. */
import type { ModelTask } from "../../shared/model.ts";
import type { PictureRequest } from "../../shared/picture.ts";
import type { ModelDescription } from "../weights/describe.ts";

/** The task that a request amounts to, with a model that has channels for an edited picture or without. */
export function taskOf({ source, mask, outpaint, image_guidance_scale }: PictureRequest): ModelTask {
  if (image_guidance_scale !== null) return "edit";
  if (source === null) return "text-to-image";
  return mask || outpaint ? "inpaint" : "image-to-image";
}

/** @throws RangeError with field, what was expected, and what was got */
export function checkRequest(request: PictureRequest, description: ModelDescription): void {
  const { width, height, clip_skip: clipSkip, upscale, refiner, micro_conditioning: micro } = request;
  const { vaeScaleFactor, tasks, addedConditions, textEncoders } = description;
  for (const [field, size] of Object.entries({ width, height })) {
    if (size % vaeScaleFactor !== 0) throw unexpected(field, `a multiple of ${vaeScaleFactor}`, size);
  }
  const task = taskOf(request);
  if (!tasks.includes(task)) throw unexpected("model", `one that can do ${task}`, `one for ${tasks.join(", ")}`);
  // SDXL leaves out the last layer already.
  const mostSkipped = Math.min(...textEncoders.map(({ layers }) => layers)) - (addedConditions ? 1 : 0);
  if (clipSkip > mostSkipped) throw unexpected("clip_skip", `0 to ${mostSkipped} on this model`, clipSkip);
  if (micro && !addedConditions) throw unexpected("micro_conditioning", "none, for a model that reads no sizes", "some");
  if (upscale && (task === "inpaint" || task === "edit")) throw unexpected("upscale", `none for ${task}`, upscale.mode);
  if (refiner && (task === "inpaint" || task === "edit")) throw unexpected("refiner", `none for ${task}`, refiner.model);
  if (task === "edit" && request.mask) throw unexpected("mask", "none for edit", "a mask");
}

/** Both have to mean the same by latents and noise levels. */
export function checkRefiner(base: ModelDescription, refiner: ModelDescription): void {
  const isRefiner = base.family === "sdxl" && refiner.family === "sdxl-refiner";
  if (!isRefiner && refiner.family !== base.family) throw unexpected("refiner", `a model that refines ${base.family}`, refiner.family);
  if (refiner.unetInputChannels !== refiner.latentChannels)
    throw unexpected("refiner", "a model from text to image", refiner.tasks.join(", "));
}

function unexpected(field: string, expected: string, got: string | number): RangeError {
  return new RangeError(`${field}: expected ${expected}, got ${got}`);
}
