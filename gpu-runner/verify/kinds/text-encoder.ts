/** Token ids to hidden states. */
import { z } from "zod";
import type { VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

/** Text encoders by their folders in a model. */
const components = { text_encoder: "textEncoder", text_encoder_2: "textEncoder2" } as const;
const paramsSchema = z.object({ component: z.enum(Object.keys(components) as (keyof typeof components)[]).default("text_encoder") });

export const textEncoderKind: VerifyKind = {
  kind: "text-encoder",
  supports: unsupportedModel,
  async run({ params }, context) {
    const { data, shape } = context.input("input_ids");
    const [batch, length] = shape as [number, number];
    const inputIds = Array.from({ length: batch }, (_, item) => Array.from({ length }, (_, i) => data[item * length + i]!));
    const model = await context.model();
    const component = components[paramsSchema.parse(params).component];
    const encoder = model.description.textEncoders.findIndex(part => part.component === component);
    const encoding = await model.encodeText({ encoder, inputIds });
    return {
      last_hidden_state: encoding.normed(0),
      penultimate: encoding.hidden(1),
      penultimate_normed: encoding.normed(1),
      skip2_normed: encoding.normed(2),
      pooler_output: encoding.pooled,
      text_embeds: encoding.pooled,
    };
  },
};
