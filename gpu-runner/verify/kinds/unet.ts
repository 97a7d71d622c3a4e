/** One noise prediction, with a timestep per item. */
import { z } from "zod";
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

const paramsSchema = z.object({ timesteps: z.array(z.number()).nonempty() });

export const unetKind: VerifyKind = {
  kind: "unet",
  supports: (goldenCase, modelPath) =>
    "text_embeds" in goldenCase.inputs ? "added conditions of SDXL" : unsupportedModel(goldenCase, modelPath),
  async run(goldenCase, context) {
    const { timesteps } = paramsSchema.parse(goldenCase.params);
    const encoderHiddenStates = float32Input(context, "encoder_hidden_states");
    return { sample: await (await context.model()).predict({ sample: float32Input(context, "sample"), timesteps, encoderHiddenStates }) };
  },
};
