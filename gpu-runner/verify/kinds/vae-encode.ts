/** Pixels to the posterior of the latents, whole or in tiles. */
import { tiledEncode } from "../../pipeline/tiled-vae.ts";
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";
import { tilingOf } from "./vae-decode.ts";

export const vaeEncodeKind: VerifyKind = {
  kind: "vae-encode",
  supports: unsupportedModel,
  async run({ params }, context) {
    const model = await context.model();
    const image = float32Input(context, "image");
    const tiling = tilingOf(params, model.description);
    return tiling ? tiledEncode(model, image, tiling) : model.encodeImage(image);
  },
};
