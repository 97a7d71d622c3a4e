/**
 * AdamW (Loshchilov and Hutter 2019) over the flat buffer of trained tensors: decoupled decay, bias correction, clipping by the global
 * L2 norm. Formulas in float64 between float32 values; moments in float32 or, at a quarter of the memory, in 8 bits by blocks
 * (Dettmers et al. 2022).
 */
import type { OptimizerSettings } from "../../shared/training.ts";
import type { CheckpointArrays } from "./checkpoint.ts";
import type { Optimiser } from "./context.ts";
import { Float32Moments, type Moments, QuantisedMoments } from "./moments.ts";
import type { TrainedTensors } from "./trained-tensors.ts";

export type AdamWSettings = Pick<OptimizerSettings, "betas" | "weight_decay" | "epsilon" | "clip_norm" | "moments">;

/** Elements that are widened at a time. */
const chunkElements = 2 ** 16;

export class AdamW implements Optimiser {
  readonly state: CheckpointArrays;
  readonly #tensors: TrainedTensors;
  readonly #settings: AdamWSettings;
  readonly #moments: { first: Moments; second: Moments };
  /** Runs of tensors with one rate. */
  readonly #spans: readonly { group: "main" | "text"; start: number; end: number }[];

  constructor(tensors: TrainedTensors, settings: AdamWSettings) {
    const { length } = tensors.values;
    const make = (isSquare: boolean): Moments =>
      settings.moments === "float32" ? new Float32Moments(length) : new QuantisedMoments(length, isSquare);
    this.#tensors = tensors;
    this.#settings = settings;
    this.#moments = { first: make(false), second: make(true) };
    this.state = new Map(
      Object.entries(this.#moments).flatMap(([moment, { arrays }]) =>
        [...arrays].map(([name, array]) => [`${moment}.${name}`, array] as const),
      ),
    );
    this.#spans = tensors.list.map(({ name, group }) => {
      const start = tensors.offset(name);
      return { group, start, end: start + tensors.value(name).data.length };
    });
  }

  async step(number: number, rates: { main: number; text: number }): Promise<number> {
    const norm = globalNorm(this.#tensors.gradients);
    const { clip_norm } = this.#settings;
    // As PyTorch's clip_grad_norm_.
    const clip = clip_norm === null ? 1 : Math.min(1, clip_norm / (norm + 1e-6));
    for (const { group, start, end } of this.#spans)
      for (let from = start; from < end; from += chunkElements)
        this.#move(from, Math.min(end, from + chunkElements), { number, clip, rate: rates[group] });
    return norm;
  }

  async release(): Promise<void> {}

  #move(start: number, end: number, { number, clip, rate }: { number: number; clip: number; rate: number }): void {
    const { values, gradients } = this.#tensors;
    const { betas, weight_decay, epsilon } = this.#settings;
    const [beta1, beta2] = betas;
    const first = this.#moments.first.read(start, end);
    const second = this.#moments.second.read(start, end);
    const size = rate / (1 - beta1 ** number);
    const root = 1 / Math.sqrt(1 - beta2 ** number);
    const kept = 1 - rate * weight_decay;
    for (let i = 0; i < end - start; i++) {
      const gradient = clip * gradients[start + i]!;
      const mean = beta1 * first[i]! + (1 - beta1) * gradient;
      const square = beta2 * second[i]! + (1 - beta2) * gradient * gradient;
      first[i] = mean;
      second[i] = square;
      values[start + i] = kept * values[start + i]! - (size * mean) / (root * Math.sqrt(square) + epsilon);
    }
    this.#moments.first.write(start, first);
    this.#moments.second.write(start, second);
  }
}

function globalNorm(gradients: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < gradients.length; i++) sum += gradients[i]! * gradients[i]!;
  return Math.sqrt(sum);
}
