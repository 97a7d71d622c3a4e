/**
 * A1111's hypernetworks: small networks on the context before keys and values, x + f(x) * strength. Weights and strength are
 * graph inputs, so only another form (widths and layers) needs another graph.
 */
import type { HyperNetwork, HyperNetworkActivation, HyperNetworkLayer } from "../adapters/adapter.ts";
import type { TensorF32 } from "../components.ts";
import type { Graph, Value } from "../graph/ir.ts";
import * as ops from "../graph/ops.ts";
import { widthOf } from "./layers.ts";

/** What the graph depends on: each layer by its type, with sizes where it has any. */
type LayerForm =
  | { type: "linear"; in: number; out: number }
  | { type: "activation"; name: HyperNetworkActivation }
  | { type: "layer-norm"; width: number };

/** By the width of the context, as plain data: equal forms have equal JSON. */
export type HyperNetworkForm = readonly { width: number; key: readonly LayerForm[]; value: readonly LayerForm[] }[];

const activations = {
  linear: x => x,
  relu: ops.relu,
  leakyrelu: x => ops.activate(x, "leakyRelu"),
  elu: x => ops.activate(x, "elu"),
  // A1111 names PyTorch's Hardswish so.
  swish: x => ops.activate(x, "hardSwish"),
  tanh: x => ops.activate(x, "tanh"),
  sigmoid: x => ops.activate(x, "sigmoid"),
  softsign: x => ops.activate(x, "softsign"),
  mish: x => ops.activate(x, "mish"),
  gelu: ops.gelu,
} satisfies Record<HyperNetworkActivation, (x: Value) => Value>;

export function hyperNetworkForm({ nets }: HyperNetwork): HyperNetworkForm {
  return [...nets]
    .map(([width, { key, value }]) => ({ width, key: key.map(layerForm), value: value.map(layerForm) }))
    .sort((a, b) => a.width - b.width);
}

function layerForm(layer: HyperNetworkLayer): LayerForm {
  if (layer.type === "activation") return layer;
  const [out, width] = layer.weight.shape as [number, number];
  return layer.type === "linear" ? { type: "linear", in: width, out } : { type: "layer-norm", width: out };
}

const strengthName = (name: string): string => `${name}.strength`;
const layerName = (name: string, width: number, part: Part, index: number): string => `${name}.${width}.${part}.${index}`;
type Part = "key" | "value";

/** What one hypernetwork adds to a UNet's inputs: `<name>.strength` [1] and its weights, which all layers of a width share. */
export class HyperNetworkInputs {
  readonly #graph: Graph;
  readonly #name: string;
  readonly #form: HyperNetworkForm;
  readonly #inputs = new Map<string, Value>();

  constructor(graph: Graph, name: string, form: HyperNetworkForm) {
    this.#graph = graph;
    this.#name = name;
    this.#form = form;
  }

  /** The context [B, L, width] as keys or values shall see it; itself where there is no net for its width. */
  apply(part: Part, context: Value): Value {
    const width = widthOf(context);
    const layers = this.#form.find(net => net.width === width)?.[part];
    if (!layers) return context;
    const change = layers.reduce((x, layer, i) => this.#layer(layer, x, layerName(this.#name, width, part, i)), context);
    return ops.add(context, ops.multiply(change, this.#input(strengthName(this.#name), [1])));
  }

  #layer(layer: LayerForm, x: Value, name: string): Value {
    if (layer.type === "activation") return activations[layer.name](x);
    const shape = layer.type === "linear" ? [layer.out, layer.in] : [layer.width];
    const weight = this.#input(`${name}.weight`, shape);
    const bias = this.#input(`${name}.bias`, shape.slice(0, 1));
    return layer.type === "linear" ? ops.linear(x, weight, bias) : ops.layerNorm(x, weight, bias, { epsilon: 1e-5 });
  }

  #input(name: string, shape: readonly number[]): Value {
    const input = this.#inputs.get(name) ?? this.#graph.input(name, shape);
    this.#inputs.set(name, input);
    return input;
  }
}

/** What `HyperNetworkInputs` of this name are fed. Inputs that the UNet lacks, for want of such a width, are among them. */
export function hyperNetworkFeeds(name: string, { nets }: HyperNetwork, strength: number): Record<string, TensorF32> {
  const feeds: Record<string, TensorF32> = { [strengthName(name)]: { data: Float32Array.of(strength), shape: [1] } };
  for (const [width, net] of nets)
    for (const part of ["key", "value"] as const)
      net[part].forEach((layer, i) => {
        if (layer.type === "activation") return;
        feeds[`${layerName(name, width, part, i)}.weight`] = layer.weight;
        feeds[`${layerName(name, width, part, i)}.bias`] = layer.bias;
      });
  return feeds;
}
