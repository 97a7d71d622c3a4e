/** A loaded model with all that pictures need besides it. */
import type { DiffusionModel } from "../components.ts";
import { tokenizersOf } from "../tokenizer/model-tokenizers.ts";
import type { PictureModel } from "./context.ts";
import { fitPreviewMap } from "./preview.ts";

/** @throws Error that names a tokenizer's file and what is wrong with it */
export async function preparePictureModel(model: DiffusionModel): Promise<PictureModel> {
  return { model, tokenizers: tokenizersOf(model.description), previewMap: await fitPreviewMap(model) };
}
