/** Pixels to the posterior of the latents. */
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

export const vaeEncodeKind: VerifyKind = {
  kind: "vae-encode",
  supports: (goldenCase, modelPath) => (goldenCase.params.tiled ? "tiled" : unsupportedModel(goldenCase, modelPath)),
  run: async (_, context) => (await context.model()).encodeImage(float32Input(context, "image")),
};
