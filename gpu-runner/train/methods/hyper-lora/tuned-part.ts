/** The LoRA of one concept, trained on from what the net predicts: whole pairs, without the net. */
import type { TensorF32 } from "../../../components.ts";
import { lowRankInputs } from "../../../models/layers.ts";
import { addInto } from "../../flat-weights.ts";
import type { StepBatch } from "../../step.ts";
import { TrainedTensors } from "../../trained-tensors.ts";
import type { AdapterPart } from "../adapter-step.ts";
import type { Projection } from "./net.ts";

export class TunedPart implements AdapterPart {
  readonly tensors: TrainedTensors;
  readonly features: AdapterPart["features"];
  readonly wrt: readonly string[];
  /** The pairs by input, where they lie among the trained tensors. */
  readonly pairs: Readonly<Record<string, TensorF32>>;

  /** @param start the pair of each projection by input, [R, in] and [out, R] */
  constructor(features: AdapterPart["features"], projections: readonly Projection[], start: Readonly<Record<string, TensorF32>>) {
    this.features = features;
    const named = projections.flatMap(({ name }) => {
      const { down, up } = lowRankInputs(`${name}.weight`);
      return [
        { input: down, name: `unet.${name}.lora_A.weight` },
        { input: up, name: `unet.${name}.lora_B.weight` },
      ];
    });
    this.wrt = named.map(({ input }) => input);
    this.tensors = new TrainedTensors(named.map(({ input, name }) => ({ name, shape: start[input]!.shape, group: "main" })));
    this.pairs = Object.fromEntries(named.map(({ input, name }) => [input, this.tensors.value(name)]));
    for (const input of this.wrt) this.pairs[input]!.data.set(start[input]!.data);
  }

  /** Every item reads the same pairs. */
  async forward({ timesteps: { length: count } }: StepBatch): Promise<Record<string, TensorF32>> {
    const repeated = Object.entries(this.pairs).map(([input, { data, shape }]): [string, TensorF32] => {
      const all = new Float32Array(count * data.length);
      for (let item = 0; item < count; item++) all.set(data, item * data.length);
      return [input, { data: all, shape: [count, ...shape] }];
    });
    return Object.fromEntries(repeated);
  }

  async backward(
    { timesteps: { length: count } }: StepBatch,
    _texts: unknown,
    gradients: Readonly<Record<string, TensorF32>>,
  ): Promise<void> {
    for (const [i, input] of this.wrt.entries()) {
      const into = this.tensors.gradient(this.tensors.list[i]!.name).data;
      const { data } = gradients[input]!;
      for (let item = 0; item < count; item++) addInto(into, data.subarray(item * into.length, (item + 1) * into.length));
    }
  }

  async release(): Promise<void> {}
}
