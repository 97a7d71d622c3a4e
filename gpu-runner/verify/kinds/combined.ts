/** All kinds of adapters in one run: IP-Adapters, ControlNets, LoRAs and textual inversions. */
import { z } from "zod";
import { adapterKinds } from "../../../shared/adapter.ts";
import { adapterDiskFiles, hashAdapterFiles } from "../../adapters/content-hash.ts";
import { openControlNet } from "../../adapters/controlnet/controlnet.ts";
import { openIpAdapter } from "../../adapters/ip-adapter/ip-adapter.ts";
import { openLora } from "../../adapters/lora/lora.ts";
import { openTextualInversion } from "../../adapters/textual-inversion.ts";
import { isGuided } from "../../pipeline/denoiser.ts";
import type { ControlNetUse, ImagePromptUse, ItemAdapters } from "../../pipeline/item-adapters.ts";
import { planPass, runPass } from "../../pipeline/pass.ts";
import { preparePictureModel } from "../../pipeline/prepare-model.ts";
import { type Collected, emptyCollection, joinInversions } from "../../pipeline/resolve-adapters.ts";
import { split } from "../../pipeline/tensors.ts";
import { itemTexts } from "../../pipeline/texts.ts";
import { schedulerConfig } from "../../schedulers/config.ts";
import { float32Input, type GoldenAdapter, type GoldenCase, type VerifyContext, type VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";

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
type Params = z.infer<typeof paramsSchema>;

const always = { start: 0, end: 1 };

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
    const opened = await openAll(goldenCase, params, context);
    try {
      const adapters: ItemAdapters = { ...opened.into, inversions: joinInversions(opened.into.words, plan) };
      const guidance = { scale: params.guidanceScale, rescale: 0, imageScale: null, ...always };
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

async function openAll({ adapters = [] }: GoldenCase, params: Params, context: VerifyContext) {
  const into = emptyCollection();
  const nets: { release(): Promise<void> }[] = [];
  for (const adapter of adapters) await open(adapter, into, nets, params, context);
  return { into, nets };
}

async function open(
  { file, kind, weight, token }: GoldenAdapter,
  into: Collected,
  nets: { release(): Promise<void> }[],
  params: Params,
  context: VerifyContext,
): Promise<void> {
  const { weightShapes, unet } = await context.model();
  const path = context.path(file);
  const options = { provider: "cpu", cacheDir: context.cacheDir } as const;
  const files = adapterDiskFiles(path);
  switch (adapterKinds.find(known => known === kind)) {
    case "lora": {
      const use = { adapter: await openLora(files, await hashAdapterFiles(files), weightShapes), weight, dora: null };
      into.loras.push({ ...use, ...always });
      into.textLoras.push(use);
      return;
    }
    case "textual-inversion": {
      const inversion = await openTextualInversion(files, await hashAdapterFiles(files), weightShapes);
      into.words.push({ word: token ?? inversion.token ?? "", inversion });
      return;
    }
    case "ip-adapter": {
      const { imageEncoder } = params;
      const adapter = await openIpAdapter(path, unet, { ...options, ...(imageEncoder && { imageEncoder: context.path(imageEncoder) }) });
      nets.push(adapter);
      const { tokens, unconditional } = await adapter.tokens([{ pixelValues: float32Input(context, "pixel_values"), weight: 1 }]);
      const use: ImagePromptUse = { layers: adapter.layers, tokens, unconditionalTokens: unconditional, weight, ...always };
      into.imagePrompts.push(use);
      return;
    }
    case "controlnet": {
      const net = await openControlNet(path, unet, options);
      nets.push(net);
      const index = into.controlNets.length;
      const map = float32Input(context, index === 0 ? "controlnet_cond" : `controlnet_cond_${index + 1}`);
      const scale = params.conditioningScale[index] ?? weight;
      const use: ControlNetUse = { net, map, weight: scale, guessMode: false, globalPool: net.globalPool, control: null, ...always };
      into.controlNets.push(use);
      return;
    }
    default:
      throw new Error(`adapters: expected lora, textual-inversion, ip-adapter or controlnet, got ${kind}`);
  }
}
