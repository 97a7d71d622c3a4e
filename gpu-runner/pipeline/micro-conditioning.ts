/** The numbers that SDXL reads besides its prompts: sizes and crop, or for a refiner an aesthetic score in the target size's place. */
import type { PictureRequest } from "../../shared/picture.ts";
import type { ModelDescription } from "../weights/describe.ts";
import type { DenoisedItem } from "./denoiser.ts";

/** @param size of the pass, which stands for what the request leaves open */
export function timeIdsOf(
  { addedConditions }: ModelDescription,
  micro: PictureRequest["micro_conditioning"],
  { width, height }: { width: number; height: number },
): DenoisedItem["timeIds"] {
  const size = [height, width];
  const given = micro ?? {
    original_size: size,
    crops_coords_top_left: [0, 0],
    target_size: size,
    negative_original_size: size,
    negative_crops_coords_top_left: [0, 0],
    negative_target_size: size,
    aesthetic_score: 6,
    negative_aesthetic_score: 2.5,
  };
  const isRefiner = addedConditions?.requiresAestheticsScore;
  return {
    conditional: [...given.original_size, ...given.crops_coords_top_left, ...(isRefiner ? [given.aesthetic_score] : given.target_size)],
    unconditional: [
      ...given.negative_original_size,
      ...given.negative_crops_coords_top_left,
      ...(isRefiner ? [given.negative_aesthetic_score] : given.negative_target_size),
    ],
  };
}
