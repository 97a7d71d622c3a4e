/** One noise prediction, with a timestep per item. */
import { z } from "zod";
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

const paramsSchema = z.object({
  timesteps: z.array(z.number()).nonempty(),
  /** Of a latent consistency model: one per item. */
  guidance: z.array(z.number()).nonempty().optional(),
});

export const unetKind: VerifyKind = {
  kind: "unet",
  supports: unsupportedModel,
  async run({ params, inputs }, context) {
    const added = "text_embeds" in inputs && {
      added: { textEmbeds: float32Input(context, "text_embeds"), timeIds: float32Input(context, "time_ids") },
    };
    const model = await context.model();
    return {
      sample: await model.predict({
        ...paramsSchema.parse(params),
        sample: float32Input(context, "sample"),
        encoderHiddenStates: float32Input(context, "encoder_hidden_states"),
        ...added,
      }),
    };
  },
};
