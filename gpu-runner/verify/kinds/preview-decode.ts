/** Latents on the sampler's scale to pixels, by the TAESD-type decoder that lies with a model. */
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

export const previewDecodeKind: VerifyKind = {
  kind: "preview-decode",
  supports: unsupportedModel,
  async run(_, context) {
    const { decodePreview } = await context.model();
    if (!decodePreview) throw new Error(`${context.modelPath}: expected a preview decoder beside the model, found none`);
    return { sample: await decodePreview(float32Input(context, "latents")) };
  },
};
