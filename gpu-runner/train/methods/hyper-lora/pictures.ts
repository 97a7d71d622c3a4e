/** hyper-lora's picture branch: a concept's code from the latents of a picture of it. */
import { cotangentName, gradientName } from "../../../autodiff/differentiate.ts";
import type { TensorF32 } from "../../../components.ts";
import { symbol } from "../../../graph/dims.ts";
import { Graph } from "../../../graph/ir.ts";
import * as ops from "../../../graph/ops.ts";
import { addInto } from "../../flat-weights.ts";
import type { TrainedTensors } from "../../trained-tensors.ts";
import { type TrainingOptions, TrainingSession } from "../../training-session.ts";

const kernel = 3;
const pads = { top: 1, left: 1, bottom: 1, right: 1 } as const;

/** Two convolutions and a linear layer, by name. */
export function pictureTensors(
  latentChannels: number,
  [first, second]: readonly [number, number],
  codeWidth: number,
): [string, readonly number[]][] {
  return [
    ["picture.0.weight", [first, latentChannels, kernel, kernel]],
    ["picture.0.bias", [first]],
    ["picture.1.weight", [second, first, kernel, kernel]],
    ["picture.1.bias", [second]],
    ["picture.2.weight", [codeWidth, second]],
    ["picture.2.bias", [codeWidth]],
  ];
}

/** E(x) = picture.2 mean(silu(picture.1 * silu(picture.0 * x))), both convolutions with stride 2: [B, C, h, w] to [B, code width]. */
function buildPictureCodes(tensors: ReadonlyMap<string, readonly number[]>): Graph {
  const graph = new Graph("picture-codes");
  const input = (name: string) => graph.input(name, tensors.get(name)!);
  const channels = tensors.get("picture.0.weight")![1]!;
  let h = graph.input("latents", [symbol("B"), channels, symbol("H"), symbol("W")]);
  for (const name of ["picture.0", "picture.1"])
    h = ops.silu(ops.conv2d(h, input(`${name}.weight`), input(`${name}.bias`), { stride: 2, pads }));
  const pooled = ops.reshape(ops.spatialMean(h), [symbol("B"), h.shape[1]!]);
  graph.output("code", ops.linear(pooled, input("picture.2.weight"), input("picture.2.bias")));
  return graph;
}

export class PictureCodes {
  readonly #names: readonly string[];
  readonly #session: TrainingSession;

  constructor(list: readonly [string, readonly number[]][], options: TrainingOptions) {
    this.#names = list.map(([name]) => name);
    const graph = buildPictureCodes(new Map(list));
    this.#session = new TrainingSession({ graph, outputs: ["code"], of: ["code"], wrt: this.#names }, options);
  }

  /** @param latents [B, C, h, w], on the sampler's scale @returns [B, code width] */
  async codes(tensors: TrainedTensors, latents: TensorF32): Promise<TensorF32> {
    const { code } = await this.#session.forward({ latents, ...this.#weights(tensors) });
    return code!;
  }

  /** Adds the weights' gradients from that of the codes. */
  async backward(tensors: TrainedTensors, latents: TensorF32, cotangent: TensorF32): Promise<void> {
    const results = await this.#session.gradients({ latents, ...this.#weights(tensors), [cotangentName("code")]: cotangent });
    for (const name of this.#names) addInto(tensors.gradient(name).data, results[gradientName(name)]!.data);
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  #weights(tensors: TrainedTensors): Record<string, TensorF32> {
    return Object.fromEntries(this.#names.map(name => [name, tensors.value(name)]));
  }
}
