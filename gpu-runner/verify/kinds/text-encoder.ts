/** Token ids to hidden states. */
import type { VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

export const textEncoderKind: VerifyKind = {
  kind: "text-encoder",
  supports: (goldenCase, modelPath) => {
    const component = goldenCase.params.component ?? "text_encoder";
    return component === "text_encoder" ? unsupportedModel(goldenCase, modelPath) : `component ${component}`;
  },
  async run(_, context) {
    const { data, shape } = context.input("input_ids");
    const [batch, length] = shape as [number, number];
    const ids = Array.from({ length: batch }, (_, item) => Array.from({ length }, (_, i) => data[item * length + i]!));
    const encoding = await (await context.model()).encodeText({ encoder: 0, inputIds: ids });
    return {
      last_hidden_state: encoding.normed(0),
      penultimate: encoding.hidden(1),
      penultimate_normed: encoding.normed(1),
      skip2_normed: encoding.normed(2),
      pooler_output: encoding.pooled,
    };
  },
};
