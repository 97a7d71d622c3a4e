/** How a picture becomes the map that a control reads. */
import type { ControlPreprocessor } from "../../shared/picture.ts";
import type { RgbPicture } from "./input-picture.ts";

/** @throws RangeError for a preprocessor that this build lacks */
export async function preprocess(kind: ControlPreprocessor, picture: RgbPicture): Promise<RgbPicture> {
  if (kind === "none") return picture;
  throw new RangeError(`preprocess: expected none, got ${kind}`);
}
