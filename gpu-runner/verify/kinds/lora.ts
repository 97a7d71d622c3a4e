/** LoRA and LyCORIS on their base: a noise prediction, and the text encoders' states. */
import { z } from "zod";
import { adapterDiskFiles, hashAdapterFiles } from "../../adapters/content-hash.ts";
import { openLora } from "../../adapters/lora/lora.ts";
import type { DiffusionModel, LoraUse, TensorF32 } from "../../components.ts";
import type { GoldenCase, VerifyContext, VerifyKind } from "../kind.ts";
import { unsupportedBase } from "../model-support.ts";
import { noisePrediction, textStates, tokenIds } from "./adapter-outputs.ts";

const paramsSchema = z.object({ layout: z.string(), doraWeight: z.enum(["peft", "interpolate"]).nullish() });

export const loraKind: VerifyKind = {
  kind: "lora",
  supports: (_, modelPath) => unsupportedBase(modelPath),
  async run(goldenCase, context) {
    const { expected, inputs } = goldenCase;
    const model = await context.model();
    const loras = await openedLoras(goldenCase, context, model);
    const sampled: Record<string, TensorF32> = {};
    if ("sample" in inputs) sampled.noise_pred = await noisePrediction(goldenCase, context, { loras: itemsOf(context, loras) });
    if (!("text_hidden" in expected)) return sampled;
    const ids = ["input_ids", "input_ids_2"].filter(name => name in inputs).map(name => ({ inputIds: tokenIds(context.input(name)) }));
    return { ...sampled, ...(await textStates(model, ids, loras)) };
  },
};

async function openedLoras({ adapters = [], params }: GoldenCase, context: VerifyContext, model: DiffusionModel): Promise<LoraUse[]> {
  const dora = paramsSchema.parse(params).doraWeight ?? null;
  const uses: LoraUse[] = [];
  for (const { file, weight } of adapters) {
    const files = adapterDiskFiles(context.path(file));
    uses.push({ adapter: await openLora(files, await hashAdapterFiles(files), model.weightShapes), weight, dora });
  }
  return uses;
}

function itemsOf(context: VerifyContext, loras: readonly LoraUse[]): LoraUse[][] {
  return Array.from({ length: context.input("sample").shape[0]! }, () => [...loras]);
}
