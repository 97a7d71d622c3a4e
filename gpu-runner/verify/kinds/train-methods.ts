/** What cases of trainings have by method: the step over the case's start values, and how its tensors are called. */
import type { TrainingMethod } from "../../../shared/training.ts";
import { readTensorFile } from "../../adapters/read-tensors.ts";
import type { TensorF32, TrainableModel } from "../../components.ts";
import { openDreamBoothStep } from "../../train/methods/dreambooth.ts";
import { type LoraLayer, loraNames, openLoraStep, startFrom } from "../../train/methods/lora.ts";
import { openInversionStep, rowsName } from "../../train/methods/textual-inversion.ts";
import type { StepBatch, TrainingStep } from "../../train/step.ts";
import type { TrainingOptions } from "../../train/training-session.ts";
import type { GoldenCase, VerifyContext } from "../kind.ts";
import { openControlNetCase, openHyperLoraCase, openHyperNetworkCase, openIpAdapterCase } from "./train-adapters.ts";
import type { TrainParams } from "./train-batches.ts";

export interface CaseStep {
  step: TrainingStep;
  /** A trained tensor's name in the case. */
  caseName(tensor: string): string;
  /** Adds what the method reads beside the rest, of one step of the case. */
  extendBatch?(batch: StepBatch, step: number | null): StepBatch;
}

export interface CaseArgs {
  goldenCase: GoldenCase;
  context: VerifyContext;
  model: TrainableModel;
  params: TrainParams;
  options: TrainingOptions;
}

type OpenCase = (args: CaseArgs) => Promise<CaseStep>;

/** The tensors of the case's first adapter. */
export async function caseTensors({ goldenCase, context }: CaseArgs): Promise<ReadonlyMap<string, TensorF32>> {
  const file = goldenCase.adapters?.[0]?.file;
  if (file === undefined) throw new Error(`case ${goldenCase.name}: adapters: expected the start values, got none`);
  return readTensorFile(context.path(file));
}

const openLora: OpenCase = async args => {
  const { model, params, options } = args;
  const start = await caseTensors(args);
  const layers = (["unet", ...model.textEncoders.map(({ component }) => component)] as const).flatMap(component => {
    const shapes = component === "unet" ? model.unet.shapes : model.textEncoders.find(part => part.component === component)!.shapes;
    return [...shapes.keys()].flatMap((weight): LoraLayer[] => {
      const rank = start.get(loraNames({ component, weight }).down)?.shape[0];
      if (rank === undefined) return [];
      const dora = params.method === "dora" ? (params.doraDetachNorm ? "detached" : "attached") : null;
      return [{ component, weight, rank, scale: (params.alpha ?? rank) / rank, dora }];
    });
  });
  const step = openLoraStep(model, layers, 0, options);
  if (step.tensors.list.length !== start.size)
    throw new Error(`start values: expected ${start.size} tensors that the model takes, got ${step.tensors.list.length}`);
  startFrom(step.tensors, start);
  return { step, caseName: name => name };
};

const openInversion: OpenCase = async args => {
  const { model, options } = args;
  const start = await caseTensors(args);
  const values = [...start.values()];
  const rows = model.textEncoders.map(({ component }, i) => start.get(component === "textEncoder" ? "clip_l" : "clip_g") ?? values[i]!);
  const lone = model.textEncoders.length === 1;
  const step = openInversionStep(model, rows, options);
  return { step, caseName: name => (lone && name === rowsName(model.textEncoders[0]!) ? "rows" : name) };
};

/** One row a method of the cases, which count DoRA as one of its own. */
export const caseMethods: { readonly [M in TrainingMethod | "dora"]?: OpenCase } = {
  lora: openLora,
  dora: openLora,
  dreambooth: async ({ model, params, options }) => ({
    step: openDreamBoothStep(model, params.textEncoder ?? false, options),
    caseName: name => name,
  }),
  "textual-inversion": openInversion,
  hypernetwork: openHyperNetworkCase,
  controlnet: openControlNetCase,
  "ip-adapter": openIpAdapterCase,
  "hyper-lora": openHyperLoraCase,
};
