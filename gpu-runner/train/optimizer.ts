/**
 * AdamW (Loshchilov and Hutter 2019) over the flat buffer of trained tensors: decoupled decay, bias correction, clipping by the global
 * L2 norm. Formulas in float64 between float32 values; moments in float32 or, at a quarter of the memory, in 8 bits by blocks
 * (Dettmers et al. 2022). A loop, since it passes over the memory once: a session of elementwise ops over chunks passes a dozen times, and
 * took 1.25 to 6 times as long, at 0.8 M and at 20 M elements, in chunks of 8 K to 1 M, with one thread and with two.
 */
import type { OptimizerSettings } from "../../shared/training.ts";
import type { CheckpointArrays } from "./checkpoint.ts";
import type { Optimiser } from "./context.ts";
import { blockStarts, Float32Moments, type Moments, QuantisedMoments } from "./moments.ts";
import type { TrainedTensors } from "./trained-tensors.ts";

export type AdamWSettings = Pick<OptimizerSettings, "betas" | "weight_decay" | "epsilon" | "clip_norm" | "moments">;

/** Elements that are widened at a time, at most. */
const chunkElements = 2 ** 16;

/** Elements start .. end - 1 of the flat buffer with one rate, in whole blocks. */
interface Chunk {
  group: "main" | "text";
  start: number;
  end: number;
  firstBlock: number;
  lastBlock: number;
}

export class AdamW implements Optimiser {
  readonly state: CheckpointArrays;
  readonly #tensors: TrainedTensors;
  readonly #settings: AdamWSettings;
  readonly #moments: { first: Moments; second: Moments };
  readonly #chunks: readonly Chunk[];

  constructor(tensors: TrainedTensors, settings: AdamWSettings) {
    const blocks = blockStarts(tensors.list.map(({ name }) => tensors.value(name).data.length));
    const make = (isSquare: boolean): Moments =>
      settings.moments === "float32" ? new Float32Moments(blocks) : new QuantisedMoments(blocks, isSquare);
    this.#tensors = tensors;
    this.#settings = settings;
    this.#moments = { first: make(false), second: make(true) };
    this.state = new Map(
      Object.entries(this.#moments).flatMap(([moment, { arrays }]) =>
        [...arrays].map(([name, array]) => [`${moment}.${name}`, array] as const),
      ),
    );
    this.#chunks = chunksOf(tensors, blocks);
  }

  async step(number: number, rates: { main: number; text: number }): Promise<number> {
    const norm = globalNorm(this.#tensors.gradients);
    const { clip_norm } = this.#settings;
    // As PyTorch's clip_grad_norm_.
    const clip = clip_norm === null ? 1 : Math.min(1, clip_norm / (norm + 1e-6));
    for (const chunk of this.#chunks) this.#move(chunk, { number, clip, rate: rates[chunk.group] });
    return norm;
  }

  async release(): Promise<void> {}

  #move({ start, end, firstBlock, lastBlock }: Chunk, { number, clip, rate }: { number: number; clip: number; rate: number }): void {
    const { values, gradients } = this.#tensors;
    const { betas, weight_decay, epsilon } = this.#settings;
    const [beta1, beta2] = betas;
    const first = this.#moments.first.read(firstBlock, lastBlock);
    const second = this.#moments.second.read(firstBlock, lastBlock);
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
    this.#moments.first.write(firstBlock, first);
    this.#moments.second.write(firstBlock, second);
  }
}

/** As many blocks of one rate as a chunk may have. */
function chunksOf(tensors: TrainedTensors, blocks: Uint32Array): Chunk[] {
  const chunks: Chunk[] = [];
  let tensor = 0;
  for (let block = 0; block + 1 < blocks.length; block++) {
    const [start, end] = [blocks[block]!, blocks[block + 1]!];
    while (tensor + 1 < tensors.list.length && tensors.offset(tensors.list[tensor + 1]!.name) <= start) tensor++;
    const { group } = tensors.list[tensor]!;
    const last = chunks.at(-1);
    if (last && last.group === group && end - last.start <= chunkElements) Object.assign(last, { end, lastBlock: block + 1 });
    else chunks.push({ group, start, end, firstBlock: block, lastBlock: block + 1 });
  }
  return chunks;
}

function globalNorm(gradients: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < gradients.length; i++) sum += gradients[i]! * gradients[i]!;
  return Math.sqrt(sum);
}
