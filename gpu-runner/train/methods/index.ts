/** Every method's step: one row a method, one file each beside this. */
import type { MethodSettingsOf, TrainingMethod, TrainingRequest } from "../../../shared/training.ts";
import type { TensorF32, TrainableModel } from "../../components.ts";
import type { ClipTokenizer } from "../../tokenizer/clip.ts";
import type { OpenedStep } from "../context.ts";
import { writeTrainedModel } from "../export/full-model.ts";
import { writeSingleFile } from "../export/single-file.ts";
import type { TrainingOptions } from "../training-session.ts";
import { newControlNetConfig, openControlNetStep } from "./controlnet.ts";
import { baseWeights, openDreamBoothStep, trainedWeight } from "./dreambooth.ts";
import { requireRoom } from "./dreambooth-room.ts";
import { openEvaluation } from "./evaluation.ts";
import { openHyperLora } from "./hyper-lora/open.ts";
import { contextWidths, openHyperNetworkStep } from "./hypernetwork.ts";
import { openIpAdapterTraining } from "./ip-adapter-training.ts";
import { loraLayers, openLoraStep } from "./lora.ts";
import { startFromLora } from "./lora-start.ts";
import { initialRows, openInversionStep } from "./textual-inversion.ts";

export interface StartFile {
  /** By the names of result files. */
  tensors: ReadonlyMap<string, TensorF32>;
  /** Of the file's header. */
  metadata: Readonly<Record<string, string>>;
}

export interface MethodArgs<M extends TrainingMethod> {
  model: TrainableModel;
  /** One per text encoder. */
  tokenizers: readonly ClipTokenizer[];
  settings: MethodSettingsOf<M>;
  request: TrainingRequest;
  /** A result file to go on from; null: from the start. */
  start: StartFile | null;
  /** IP-Adapter: folder of its image encoder, or of an adapter that has one. */
  imageEncoder?: string;
  /** Evaluation: path of the adapter's file or folder. */
  adapter?: string;
  options: TrainingOptions;
}

type OpenMethod<M extends TrainingMethod> = (args: MethodArgs<M>) => Promise<OpenedStep>;

export const methods = {
  lora: async ({ model, settings, request, start, options }) => {
    const layers = loraLayers(model, settings);
    const step = openLoraStep(model, layers, request.seed, options);
    if (start) startFromLora(step.tensors, layers, model, start);
    return { step };
  },
  dreambooth: async ({ model, settings, request, options }) => {
    requireRoom(model, settings, request);
    const step = openDreamBoothStep(model, settings.text_encoder, options);
    const base = baseWeights(model, settings.text_encoder);
    if (settings.extract_rank !== null) return { step, base };
    const trained = trainedWeight(step.tensors);
    const writeModel = (folder: string): string[] => [
      ...writeTrainedModel(folder, model.source, trained),
      ...(model.source.layout === "diffusers" ? writeSingleFile(folder, model.source, trained) : []),
    ];
    return { step, base, writeModel };
  },
  "textual-inversion": async ({ model, tokenizers, settings, request, options }) => {
    const { initial, vectors } = settings;
    const rows = model.textEncoders.map((encoder, i) =>
      initialRows(encoder, tokenizers[i]!.tokens(initial), vectors, request.concepts.length),
    );
    return { step: openInversionStep(model, rows, options) };
  },
  hypernetwork: async ({ model, settings, request, options }) => {
    const { layer_structure: structure, activation, layer_norm: layerNorm, activate_output: activateOutput } = settings;
    const shape = { widths: contextWidths(model.unet.config), structure, activation, layerNorm, activateOutput, dropout: null };
    return { step: openHyperNetworkStep(model, shape, request.seed, options) };
  },
  "hyper-lora": openHyperLora,
  "ip-adapter": openIpAdapterTraining,
  evaluation: openEvaluation,
  controlnet: async ({ model, request, options }) => ({
    readsMaps: true,
    step: openControlNetStep(model, { config: newControlNetConfig(model), conditioningScale: 1, seed: request.seed }, options),
  }),
} satisfies { readonly [M in TrainingMethod]: OpenMethod<M> };
