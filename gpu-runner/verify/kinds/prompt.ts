/** A prompt of either syntax to what the UNet reads of it. */
import { z } from "zod";
import { promptSyntaxes } from "../../../shared/picture.ts";
import { noAdapters } from "../../pipeline/item-adapters.ts";
import { preparePictureModel } from "../../pipeline/prepare-model.ts";
import { itemTexts } from "../../pipeline/texts.ts";
import type { VerifyKind } from "../kind.ts";
import { unsupportedModel } from "../model-support.ts";

const paramsSchema = z.strictObject({
  prompt: z.string(),
  syntax: z.enum(promptSyntaxes),
  clipSkip: z.int().min(0).default(0),
  /** Of prompts that change during a run, counted from 1. */
  step: z.int().positive().default(1),
  steps: z.int().positive().default(1),
});

export const promptKind: VerifyKind = {
  kind: "prompt",
  supports: unsupportedModel,
  async run({ params }, context) {
    const { prompt, syntax, clipSkip, step, steps } = paramsSchema.parse(params);
    const pictureModel = await preparePictureModel(await context.model());
    const settings = { prompt, prompt2: null, negativePrompt: null, negativePrompt2: null, syntax, clipSkip };
    const { conditional } = await itemTexts(pictureModel, settings, noAdapters, false).at({ step, steps });
    return { states: conditional.states, pooled: conditional.pooled };
  },
};
