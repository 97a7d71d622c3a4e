/** Latents to pixels. */
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

export const vaeDecodeKind: VerifyKind = {
  kind: "vae-decode",
  supports: (goldenCase, modelPath) => (goldenCase.params.tiled ? "tiled" : unsupportedModel(goldenCase, modelPath)),
  run: async (_, context) => ({ sample: await (await context.model()).decodeLatents(float32Input(context, "latents")) }),
};
