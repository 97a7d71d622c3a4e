/** LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024) on any linear layers and convolutions of the UNet and the text encoders. */
import type { LoraTargetName, MethodSettingsOf } from "../../../shared/training.ts";
import type { TrainableModel } from "../../components.ts";
import { type TrainedPair, trainedInputs } from "../../models/layers.ts";
import { StoredRows } from "../../weights/stored-rows.ts";
import type { WeightSource } from "../../weights/weights.ts";
import { randomKey, uniform } from "../random.ts";
import { type TrainedTensor, TrainedTensors } from "../trained-tensors.ts";
import type { TrainingOptions } from "../training-session.ts";
import { TrainedModelStep, type TrainedPart, untrained } from "./trained-model.ts";

/** The component's place in result files, as diffusers names it. */
export const componentNames = { unet: "unet", textEncoder: "text_encoder", textEncoder2: "text_encoder_2" } as const;
export type TrainedComponentName = keyof typeof componentNames;

/** A layer that takes a pair. */
export interface LoraLayer extends TrainedPair {
  component: TrainedComponentName;
  /** Its weight in the graph, such as `mid_block.attentions.0.proj_in.weight`. */
  weight: string;
}

interface Component {
  weights: WeightSource;
  shapes: ReadonlyMap<string, readonly number[]>;
}

export function componentOf(model: TrainableModel, name: TrainedComponentName): Component {
  if (name === "unet") return model.unet;
  const found = model.textEncoders.find(({ component }) => component === name);
  if (!found) throw new RangeError(`component: expected one that the model has, got ${name}`);
  return found;
}

/** A layer's trained tensors by the names of result files. */
export function loraNames({ component, weight }: Pick<LoraLayer, "component" | "weight">) {
  const module = weight.slice(0, -".weight".length);
  const inner = component === "unet" || module === "text_projection" ? module : `text_model.${module}`;
  const name = `${componentNames[component]}.${inner}`;
  return { down: `${name}.lora_A.weight`, up: `${name}.lora_B.weight`, magnitude: `${name}.lora_magnitude_vector.weight` };
}

const targetPatterns = {
  attention: /(\.attn[12]\.to_(q|k|v|out\.0)|\.self_attn\.(q_proj|k_proj|v_proj|out_proj))\.weight$/,
  "feed-forward": /(\.ff\.net\.(0\.proj|2)|\.mlp\.fc[12])\.weight$/,
  convolution: /(\.resnets\.\d+\.(conv1|conv2|conv_shortcut)|\.(down|up)samplers\.0\.conv|\.proj_(in|out))\.weight$/,
} as const satisfies Record<LoraTargetName, RegExp>;

export function loraLayers(model: TrainableModel, settings: MethodSettingsOf<"lora">): LoraLayer[] {
  const { rank, alpha, targets, text_encoder, dora } = settings;
  const components = ["unet" as const, ...(text_encoder ? model.textEncoders.map(({ component }) => component) : [])];
  return components.flatMap(component =>
    [...componentOf(model, component).shapes.keys()]
      .filter(weight => targets.some(target => targetPatterns[target].test(weight)))
      .map(weight => ({ component, weight, rank, scale: alpha / rank, dora: dora ? ("detached" as const) : null })),
  );
}

/** Opens a step over these layers; pairs start as they change nothing, magnitudes as the norms of their weights' rows. */
export function openLoraStep(
  model: TrainableModel,
  layers: readonly LoraLayer[],
  seed: number,
  options: TrainingOptions,
): TrainedModelStep {
  const tensors = new TrainedTensors(layers.flatMap(layer => layerTensors(model, layer)));
  for (const [number, layer] of layers.entries()) startLayer(model, tensors, layer, seed, number);
  const part = (component: TrainedComponentName): TrainedPart => partOf(layers.filter(layer => layer.component === component));
  const parts = { unet: part("unet"), texts: model.textEncoders.map(({ component }) => part(component)), embeddings: null };
  return new TrainedModelStep(model, tensors, parts, options);
}

/** Of a result file or one that diffusers wrote. Throws RangeError for a tensor that is missing or misshapen. */
export function startFrom(tensors: TrainedTensors, values: ReadonlyMap<string, { data: Float32Array; shape: readonly number[] }>): void {
  for (const { name, shape } of tensors.list) {
    const found = values.get(name);
    const into = tensors.value(name).data;
    if (found?.data.length !== into.length)
      throw new RangeError(`${name}: expected [${shape}] to start from, got [${found?.shape ?? "none"}]`);
    into.set(found.data);
  }
}

function layerTensors(model: TrainableModel, { component, weight, rank, dora }: LoraLayer): TrainedTensor[] {
  const [out = 1, inputs = 1, ...kernel] = componentOf(model, component).shapes.get(weight)!;
  const names = loraNames({ component, weight });
  const group = component === "unet" ? "main" : "text";
  const ones = kernel.map(() => 1);
  return [
    { name: names.down, shape: [rank, inputs, ...kernel], group },
    { name: names.up, shape: [out, rank, ...ones], group },
    ...(dora ? [{ name: names.magnitude, shape: [out], group } as const] : []),
  ];
}

/** Down is uniform within 1 / sqrt(inputs) as peft draws it, up is zero. */
function startLayer(model: TrainableModel, tensors: TrainedTensors, layer: LoraLayer, seed: number, number: number): void {
  const names = loraNames(layer);
  const down = tensors.value(names.down);
  const bound = 1 / Math.sqrt(down.data.length / layer.rank);
  for (let i = 0; i < down.data.length; i++) down.data[i] = bound * (2 * uniform(randomKey(seed, "start", number, i)) - 1);
  if (!layer.dora) return;
  const magnitude = tensors.value(names.magnitude).data;
  const weight = storedValues(componentOf(model, layer.component), layer.weight);
  const width = weight.length / magnitude.length;
  for (let row = 0; row < magnitude.length; row++) magnitude[row] = Math.hypot(...weight.subarray(row * width, (row + 1) * width));
}

/** All elements of a base weight. */
export function storedValues({ weights, shapes }: Component, name: string): Float32Array {
  const shape = shapes.get(name)!;
  const length = shape.reduce((a, b) => a * b, 1);
  const rows = new StoredRows(weights.take(name, [1, length]));
  try {
    return rows.read(0);
  } finally {
    rows.close();
  }
}

function partOf(layers: readonly LoraLayer[]): TrainedPart {
  const inputs = new Map<string, string>();
  const held = new Map<string, string>();
  for (const layer of layers) {
    const names = loraNames(layer);
    const found = trainedInputs(layer.weight);
    inputs.set(found.down, names.down).set(found.up, names.up);
    if (layer.dora !== null) inputs.set(found.magnitude, names.magnitude);
    if (layer.dora === "detached") held.set(found.held.down, names.down).set(found.held.up, names.up);
  }
  const pairs = new Map(layers.map(({ weight, rank, scale, dora }) => [weight, { rank, scale, dora }]));
  return layers.length === 0 ? untrained : { layers: { weights: new Set(), pairs }, inputs, held };
}
