/** Every method's step: one row a method, one file each beside this. */
import type { MethodSettingsOf, TrainingMethod, TrainingRequest } from "../../../shared/training.ts";
import type { TensorF32, TrainableModel } from "../../components.ts";
import type { ClipTokenizer } from "../../tokenizer/clip.ts";
import type { OpenedStep } from "../context.ts";
import type { TrainingOptions } from "../training-session.ts";
import { newControlNetConfig, openControlNetStep } from "./controlnet.ts";
import { openDreamBoothStep } from "./dreambooth.ts";
import { standardShape } from "./hyper-lora/net.ts";
import { openHyperLoraStep } from "./hyper-lora.ts";
import { contextWidths, openHyperNetworkStep } from "./hypernetwork.ts";
import { loraLayers, openLoraStep, startFrom } from "./lora.ts";
import { initialRows, openInversionStep } from "./textual-inversion.ts";

export interface MethodArgs<M extends TrainingMethod> {
  model: TrainableModel;
  /** One per text encoder. */
  tokenizers: readonly ClipTokenizer[];
  settings: MethodSettingsOf<M>;
  request: TrainingRequest;
  /** Tensors by the names of result files to go on from; null: from the start. */
  start: ReadonlyMap<string, TensorF32> | null;
  options: TrainingOptions;
}

type OpenMethod<M extends TrainingMethod> = (args: MethodArgs<M>) => Promise<OpenedStep>;

export const methods = {
  lora: async ({ model, settings, request, start, options }) => {
    const step = openLoraStep(model, loraLayers(model, settings), request.seed, options);
    if (start) startFrom(step.tensors, start);
    return { step };
  },
  dreambooth: async ({ model, settings, options }) => ({ step: openDreamBoothStep(model, settings.text_encoder, options) }),
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
  "hyper-lora": async ({ model, settings, request, options }) => {
    if (settings.fine_tune_steps > 0)
      throw new RangeError(`settings.fine_tune_steps: expected 0 (train a LoRA from the result instead), got ${settings.fine_tune_steps}`);
    const step = openHyperLoraStep(model, standardShape(request.concepts.length, settings.rank), request.seed, options);
    return { step, predicted: () => step.predicted() };
  },
  controlnet: async ({ model, request, options }) => ({
    step: openControlNetStep(model, { config: newControlNetConfig(model), conditioningScale: 1, seed: request.seed }, options),
  }),
} satisfies { readonly [M in TrainingMethod]?: OpenMethod<M> };
