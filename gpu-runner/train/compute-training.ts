/** A training in the model thread: the trainer with this runner's models, stores and signs of life. */
import type { MethodSettingsOf, TrainingEvent, TrainingMethod, TrainingRequest, TrainingResult } from "../../shared/training.ts";
import { readTensorFile } from "../adapters/read-tensors.ts";
import { withTensorFile } from "../adapters/tensor-file.ts";
import type { TrainableModel } from "../components.ts";
import { defaultsOf } from "../model-defaults.ts";
import type { TrainingTask } from "../model-messages.ts";
import type { PictureContext, PictureModel } from "../pipeline/context.ts";
import type { OpenedStep } from "./context.ts";
import { type MethodArgs, methods, type StartFile } from "./methods/index.ts";
import { AdamW } from "./optimizer.ts";
import { train } from "./trainer.ts";
import type { TrainingOptions } from "./training-session.ts";

/** The request's model, whose parts can be built anew. */
export interface TrainablePictureModel extends PictureModel {
  model: TrainableModel;
}

export interface ComputeTraining {
  model: TrainablePictureModel;
  pictures: PictureContext;
  options: TrainingOptions;
  onEvent(event: TrainingEvent): void;
  onCheckpoint(path: string): void;
  yieldTo(): Promise<void>;
  signal: AbortSignal;
}

/** @throws as `train` */
export function computeTraining(task: TrainingTask, { model, pictures, options, ...rest }: ComputeTraining): Promise<TrainingResult> {
  const { request, inputs, folder, resumeFrom, deadline } = task;
  return train(request, {
    ...{ model, pictures, folder, resumeFrom, deadline, cacheDir: options.cacheDir },
    ...{ defaults: { ...defaultsOf(model.model.description), ...request.sampling }, file: pictures.inputs.file },
    openStep: () => openStep(model, request, options, { adapters: inputs.adapters, file: pictures.inputs.file }),
    openOptimiser: async (tensors, settings) => new AdamW(tensors, settings),
    ...rest,
  });
}

/** Paths of what was fetched for a training. */
interface Fetched {
  adapters: Readonly<Record<string, string>>;
  file(sha256: string): string;
}

async function openStep(
  { model, tokenizers }: TrainablePictureModel,
  request: TrainingRequest,
  options: TrainingOptions,
  fetched: Fetched,
): Promise<OpenedStep> {
  const { settings } = request;
  return openMethod(settings.method, settings, {
    ...{ model, tokenizers, request, options: { ...options, recompute: request.gradient_checkpointing } },
    start: await startFile(settings, fetched),
    ...fetchedOf(settings, fetched),
  });
}

/** A LoRA goes on from an adapter where it is told to, a net that predicts LoRAs from an earlier training's file. */
async function startFile(settings: TrainingRequest["settings"], { adapters, file }: Fetched): Promise<StartFile | null> {
  if ((settings.method !== "lora" && settings.method !== "hyper-lora") || settings.start_from === null) return null;
  const path = settings.method === "lora" ? adapters[settings.start_from] : file(settings.start_from);
  if (path === undefined) throw new Error(`the adapter ${settings.start_from} was not fetched`);
  const { metadata } = await withTensorFile(path, ({ metadata }) => ({ metadata }));
  return { tensors: await readTensorFile(path), metadata };
}

/** Of an IP-Adapter's training the adapter that its encoder lies in, of an evaluation the one that is scored. */
function fetchedOf(settings: TrainingRequest["settings"], { adapters }: Fetched): { imageEncoder?: string; adapter?: string } {
  const pathOf = (hash: string): string => {
    const path = adapters[hash];
    if (path === undefined) throw new Error(`the adapter ${hash} was not fetched`);
    return path;
  };
  if (settings.method === "ip-adapter" && settings.image_encoder !== null) return { imageEncoder: pathOf(settings.image_encoder) };
  return settings.method === "evaluation" && settings.adapter !== null ? { adapter: pathOf(settings.adapter) } : {};
}

const openers: { readonly [M in TrainingMethod]: (args: MethodArgs<M>) => Promise<OpenedStep> } = methods;

function openMethod<M extends TrainingMethod>(
  method: M,
  settings: MethodSettingsOf<M>,
  rest: Omit<MethodArgs<M>, "settings">,
): Promise<OpenedStep> {
  return openers[method]({ ...rest, settings });
}
