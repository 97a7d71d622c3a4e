/** Which items each batch of a training holds, and every random choice about them, as functions of the batch's number. */
import type { LossSettings } from "../../shared/training.ts";
import { normals, randomKey, shuffled, uniform } from "./random.ts";

export interface CursorSettings {
  seed: number;
  batchSize: number;
  /** Which bucket each item is in: a batch holds items of one size. */
  buckets: readonly number[];
}

/**
 * Batches by their number, counted over epochs. In each epoch every bucket is shuffled and cut into full batches, the last one filled up
 * from the bucket's start, so that each bucket needs one compiled graph; then the batches are shuffled.
 */
export class DataCursor {
  readonly #settings: CursorSettings;
  readonly batchesPerEpoch: number;
  #epoch = -1;
  #batches: readonly (readonly number[])[] = [];

  /** @throws RangeError where there are no items */
  constructor(settings: CursorSettings) {
    if (settings.buckets.length === 0) throw new RangeError("items: expected at least one to train on, got none");
    this.#settings = settings;
    this.batchesPerEpoch = this.#epochBatches(0).length;
  }

  /** Indices of items; their count is the batch size. */
  batch(number: number): readonly number[] {
    const epoch = Math.floor(number / this.batchesPerEpoch);
    if (epoch !== this.#epoch) {
      this.#batches = this.#epochBatches(epoch);
      this.#epoch = epoch;
    }
    return this.#batches[number % this.batchesPerEpoch]!;
  }

  #epochBatches(epoch: number): number[][] {
    const { seed, batchSize, buckets } = this.#settings;
    const members = Map.groupBy(buckets.keys(), item => buckets[item]!);
    const batches: number[][] = [];
    for (const [bucket, items] of [...members].sort(([a], [b]) => a - b)) {
      const order = shuffled(items.length, place => randomKey(seed, "order", epoch, bucket + 1, place)).map(i => items[i]!);
      for (let start = 0; start < order.length; start += batchSize)
        batches.push(Array.from({ length: batchSize }, (_, i) => order[(start + i) % order.length]!));
    }
    return shuffled(batches.length, place => randomKey(seed, "order", epoch, 0, place)).map(i => batches[i]!);
  }
}

/** The choices for the item at `place` of batch `batch`. */
export interface ItemChoices {
  timestep: number;
  dropsCaption: boolean;
  isFlipped: boolean;
  /** For a reference picture or a control map, in [0, 1): dropped below the method's rate. */
  conditionShare: number;
}

export function itemChoices(
  { seed, loss, captionDropout, flip }: { seed: number; loss: LossSettings; captionDropout: number; flip: boolean },
  batch: number,
  place: number,
): ItemChoices {
  return {
    timestep: drawTimestep(loss, randomKey(seed, "timestep", batch, place)),
    dropsCaption: uniform(randomKey(seed, "caption", batch, place)) < captionDropout,
    isFlipped: flip && uniform(randomKey(seed, "flip", batch, place)) < 0.5,
    conditionShare: uniform(randomKey(seed, "condition", batch, place)),
  };
}

/** From `loss.timesteps`, both ends included: uniform, or the logistic function of a unit Gaussian (Esser et al. 2024). */
export function drawTimestep({ timesteps: [first, last], timestep_sampling }: LossSettings, key: bigint): number {
  const share = timestep_sampling === "uniform" ? uniform(key) : 1 / (1 + Math.exp(-normals(key, 1)[0]!));
  return Math.min(first + Math.floor(share * (last - first + 1)), last);
}

/**
 * Unit noise of one item, [C, h, w]; with `offset` each channel gets a share of one number (Guttenberg 2023).
 * @param counters that name the draw, such as the batch's number and the item's place
 */
export function itemNoise(seed: number, counters: readonly number[], channels: number, plane: number, offset: number): Float32Array {
  const noise = normals(randomKey(seed, "noise", ...counters), channels * plane);
  if (offset === 0) return noise;
  const shift = normals(randomKey(seed, "offset", ...counters), channels);
  return noise.map((value, i) => value + offset * shift[Math.floor(i / plane)]!);
}
