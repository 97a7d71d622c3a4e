/** A1111's hypernetworks: their weights are inputs of the UNet already, so its gradients are theirs. */
import type { HyperNetworkActivation } from "../../adapters/adapter.ts";
import type { TensorF32, TrainableModel } from "../../components.ts";
import type { HyperNetworkForm } from "../../models/hypernetwork.ts";
import { buildUnet, plainUnet } from "../../models/unet.ts";
import type { Feeds } from "../../session.ts";
import type { UnetConfig } from "../../weights/configs.ts";
import { addInto } from "../flat-weights.ts";
import { normals, randomKey } from "../random.ts";
import { type TrainedTensor, TrainedTensors } from "../trained-tensors.ts";
import type { TrainingOptions } from "../training-session.ts";
import { type AdapterPart, AdapterStep } from "./adapter-step.ts";

export interface HyperNetworkShape {
  /** Of the contexts that a net stands before. */
  widths: readonly number[];
  /** Widths of the layers as multiples of the context's. */
  structure: readonly number[];
  activation: HyperNetworkActivation;
  layerNorm: boolean;
  activateOutput: boolean;
  /** Whether a Dropout follows each linear layer, entry i + 1 after layer i: none is computed, but they count in the names. Null: none. */
  dropout: readonly number[] | null;
}

type Layer = HyperNetworkForm[number]["key"][number];

/** A layer with its number among A1111's modules. */
interface NumberedLayer {
  number: number;
  layer: Layer;
}

const parts = { key: "k", value: "v" } as const;
const name = "hypernetwork.0";

/** The widths that a base's attentions read, which A1111 offers too. */
export function contextWidths({ crossAttentionDim, levels }: UnetConfig): number[] {
  const attending = levels.filter(({ downAttends, upAttends }) => downAttends || upAttends);
  return [...new Set([crossAttentionDim, ...attending.map(({ channels }) => channels), levels.at(-1)!.channels])];
}

export function openHyperNetworkStep(model: TrainableModel, shape: HyperNetworkShape, seed: number, options: TrainingOptions): AdapterStep {
  return new AdapterStep(model, new HyperNetworkPart(model, shape, seed), options);
}

class HyperNetworkPart implements AdapterPart {
  readonly tensors: TrainedTensors;
  readonly features: { hypernetworks: readonly HyperNetworkForm[] };
  readonly wrt: readonly string[];
  /** The trained tensor of each input. */
  readonly #names: ReadonlyMap<string, string>;

  constructor({ unet }: TrainableModel, shape: HyperNetworkShape, seed: number) {
    const nets = shape.widths.map(width => ({ width, layers: numberedLayers(width, shape) }));
    const form = nets.map(({ width, layers }) => ({
      width,
      key: layers.map(({ layer }) => layer),
      value: layers.map(({ layer }) => layer),
    }));
    this.features = { hypernetworks: [form] };
    const trained = nets.flatMap(({ width, layers }) => netTensors(width, layers));
    this.tensors = new TrainedTensors(trained.map(({ tensor }) => tensor));
    // Nets of a width that no attention reads are no inputs of the UNet.
    const inputs = new Set(buildUnet(unet.config, unet.weights, { ...plainUnet, ...this.features }).inputs.map(input => input.name));
    this.#names = new Map(trained.filter(({ input }) => inputs.has(input)).map(({ input, tensor }) => [input, tensor.name]));
    this.wrt = [...this.#names.keys()];
    // A1111's default: weights, those of norms too, from a normal distribution of deviation 0.01, biases 0.
    this.tensors.list.forEach((tensor, number) => {
      if (!tensor.name.endsWith(".weight")) return;
      const { data } = this.tensors.value(tensor.name);
      data.set(normals(randomKey(seed, "start", number), data.length).map(value => 0.01 * value));
    });
  }

  async forward(): Promise<Feeds> {
    const weights = [...this.#names].map(([input, tensor]): [string, TensorF32] => [input, this.tensors.value(tensor)]);
    return { ...Object.fromEntries(weights), [`${name}.strength`]: { data: Float32Array.of(1), shape: [1] } };
  }

  async backward(_batch: unknown, _texts: unknown, gradients: Readonly<Record<string, TensorF32>>): Promise<void> {
    for (const [input, tensor] of this.#names) addInto(this.tensors.gradient(tensor).data, gradients[input]!.data);
  }

  async release(): Promise<void> {}
}

function numberedLayers(width: number, { structure, activation, layerNorm, activateOutput, dropout }: HyperNetworkShape): NumberedLayer[] {
  const layers: NumberedLayer[] = [];
  let number = 0;
  const push = (layer: Layer): void => {
    layers.push({ number: number++, layer });
  };
  const widths = structure.map(factor => Math.trunc(width * factor));
  for (let i = 0; i + 1 < widths.length; i++) {
    const [from, to] = [widths[i]!, widths[i + 1]!];
    push({ type: "linear", in: from, out: to });
    if (activation !== "linear" && (i + 2 < widths.length || activateOutput)) push({ type: "activation", name: activation });
    if (layerNorm) push({ type: "layer-norm", width: to });
    if ((dropout?.[i + 1] ?? 0) > 0) number++;
  }
  return layers;
}

function netTensors(width: number, layers: readonly NumberedLayer[]): { input: string; tensor: TrainedTensor }[] {
  return (["key", "value"] as const).flatMap(part =>
    layers.flatMap(({ number, layer }, index) => {
      if (layer.type === "activation") return [];
      const weight = layer.type === "linear" ? [layer.out, layer.in] : [layer.width];
      return [["weight", weight] as const, ["bias", weight.slice(0, 1)] as const].map(([kind, shape]) => ({
        input: `${name}.${width}.${part}.${index}.${kind}`,
        tensor: { name: `${width}.${parts[part]}.linear.${number}.${kind}`, shape, group: "main" as const },
      }));
    }),
  );
}
