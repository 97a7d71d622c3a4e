/** All kinds of adapters in one run: IP-Adapters, ControlNets, LoRAs and textual inversions. */
import { z } from "zod";
import { isGuided } from "../../pipeline/denoiser.ts";
import type { ItemAdapters } from "../../pipeline/item-adapters.ts";
import { planPass, runPass } from "../../pipeline/pass.ts";
import { preparePictureModel } from "../../pipeline/prepare-model.ts";
import { joinInversions } from "../../pipeline/resolve-adapters.ts";
import { split } from "../../pipeline/tensors.ts";
import { itemTexts } from "../../pipeline/texts.ts";
import { schedulerConfig } from "../../schedulers/config.ts";
import { float32Input, type VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { openCaseAdapters } from "./case-adapters.ts";

const paramsSchema = z.object({
  prompt: z.string(),
  negativePrompt: z.string(),
  steps: z.int().positive(),
  guidanceScale: z.number(),
  scheduler: z.literal("ddim"),
  eta: z.number().default(0),
  imageEncoder: z.string().optional(),
  conditioningScale: z.array(z.number()).default([]),
});
export const combinedKind: VerifyKind = {
  kind: "combined",
  supports: (_, modelPath) => unsupportedBase(modelPath),
  async run(goldenCase, context) {
    const params = paramsSchema.parse(goldenCase.params);
    const pictureModel = await preparePictureModel(await context.model());
    const { description } = pictureModel.model;
    const { data, shape } = float32Input(context, "latents");
    const [, , height, width] = shape as [number, number, number, number];
    const plan = planPass(
      {
        pictureModel,
        scheduler: "DDIMScheduler",
        schedulerConfig: schedulerConfig("DDIMScheduler", { ...description.schedulerConfig, eta: params.eta }),
        steps: params.steps,
        width: width * description.vaeScaleFactor,
        height: height * description.vaeScaleFactor,
        strength: 1,
        tiled: false,
      },
      false,
    );
    const opened = await openCaseAdapters(goldenCase, params, context);
    try {
      const adapters: ItemAdapters = { ...opened.into, inversions: joinInversions(opened.into.words, plan) };
      const guidance = { scale: params.guidanceScale, rescale: 0, imageScale: null, start: 0, end: 1 };
      const prompts = { prompt: params.prompt, prompt2: null, negativePrompt: params.negativePrompt, negativePrompt2: null };
      const texts = itemTexts(pictureModel, { ...prompts, syntax: "plain", clipSkip: 0 }, adapters, isGuided(pictureModel, guidance));
      const timeIds = { conditional: [], unconditional: [] };
      const item = { texts, timeIds, guidance, adapters, start: { kind: "noise" as const }, mask: null, fillsWithNoise: false };
      const latents = await runPass(plan, [{ ...item, draw: () => split(data, shape[0]!)[0]! }]);
      const { conditional, unconditional } = await texts.at({ step: 1, steps: params.steps });
      return { text_hidden: conditional.states, text_hidden_uncond: unconditional!.states, latents: { data: latents[0]!, shape } };
    } finally {
      for (const net of opened.nets) await net.release();
    }
  },
};
