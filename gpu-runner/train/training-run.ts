/** The part of a training that repeats: batches, gradients, the optimiser, averages, validation. It knows neither files nor pictures. */
import type { OptimizerSettings, TrainingRequest } from "../../shared/training.ts";
import { assembleBatch, type BatchItem, type BatchSettings } from "./batch.ts";
import type { CheckpointArrays, TrainingProgressState } from "./checkpoint.ts";
import type { Optimiser } from "./context.ts";
import { DataCursor, itemChoices, itemNoise } from "./data-cursor.ts";
import type { PreparedItem } from "./dataset.ts";
import { type EvaluationPlan, evaluate, evenly, mean } from "./evaluate.ts";
import { randomKey, uniform } from "./random.ts";
import { rateFactor } from "./schedule.ts";
import type { TrainingStep } from "./step.ts";

export interface RunItems {
  train: readonly PreparedItem[];
  /** Held out: choose the weights that are kept. */
  validation: readonly PreparedItem[];
  /** DreamBooth's pictures of the class; empty: none. */
  prior: readonly PreparedItem[];
}

export interface StepReport {
  loss: number;
  smoothedLoss: number;
  learningRate: number;
}

/** Share of the past in the smoothed loss. */
const smoothing = 0.95;
export const validation = { pictures: 8, timesteps: 4, noises: 1 } as const;
/** Batches of prior pictures have numbers of their own. */
const priorBatches = 2 ** 31;

/** A part of a training's steps. */
export interface RunCourse {
  /** Shared with the parts before. */
  progress: TrainingProgressState;
  /** The step that it begins after. */
  first: number;
  steps: number;
  optimizer: OptimizerSettings;
}

export class TrainingRun {
  readonly progress: TrainingProgressState;
  readonly #request: TrainingRequest;
  readonly #step: TrainingStep;
  readonly #optimiser: Optimiser;
  readonly #settings: BatchSettings;
  readonly #items: RunItems;
  readonly #cursors: { train: DataCursor; prior: DataCursor | null };
  /** The averaged weights; null without. */
  readonly #ema: Float32Array | null;
  /** The weights of the best validation; null where nothing is held out. */
  readonly #best: Float32Array | null;
  readonly #course: Omit<RunCourse, "progress">;

  /** @param course absent: all steps of the request, from the first one */
  constructor(step: TrainingStep, optimiser: Optimiser, settings: BatchSettings, items: RunItems, requestHash: string, course?: RunCourse) {
    const { request } = settings;
    const cursor = (list: readonly PreparedItem[]) =>
      new DataCursor({ seed: request.seed, batchSize: request.batch_size, buckets: list.map(({ bucket }) => bucket) });
    this.#request = request;
    this.#step = step;
    this.#optimiser = optimiser;
    this.#settings = settings;
    this.#items = items;
    this.#cursors = { train: cursor(items.train), prior: items.prior.length > 0 ? cursor(items.prior) : null };
    this.#ema = request.ema === null ? null : step.tensors.values.slice();
    this.#best = items.validation.length > 0 ? step.tensors.values.slice() : null;
    this.#course = course ?? { first: 0, steps: request.steps, optimizer: request.optimizer };
    this.progress = course?.progress ?? {
      request: requestHash,
      step: 0,
      computed_ms: 0,
      smoothed_loss: null,
      losses: [],
      validation: [],
      best: null,
    };
  }

  /** The step that it ends after. */
  get last(): number {
    return this.#course.first + this.#course.steps;
  }

  /** Everything that changes from step to step. */
  get arrays(): CheckpointArrays {
    const own = { values: this.#step.tensors.values, ...(this.#ema && { ema: this.#ema }), ...(this.#best && { best: this.#best }) };
    const moments = [...this.#optimiser.state].map(([name, array]) => [`optimiser.${name}`, array] as const);
    return new Map([...Object.entries(own), ...moments]);
  }

  /** One optimiser step over all accumulated batches. @throws RangeError where the loss is no finite number */
  async advance(): Promise<StepReport> {
    const { accumulation, batch_size, loss } = this.#request;
    const { first, steps, optimizer } = this.#course;
    const { tensors } = this.#step;
    const { progress } = this;
    tensors.gradients.fill(0);
    const weight = 1 / (batch_size * accumulation);
    let sum = 0;
    for (let i = 0; i < accumulation; i++) {
      const number = progress.step * accumulation + i;
      sum += await this.#accumulate(this.#items.train, this.#cursors.train, number, number, weight);
      if (this.#cursors.prior)
        sum += await this.#accumulate(this.#items.prior, this.#cursors.prior, number, priorBatches + number, weight * loss.prior_weight);
    }
    if (!Number.isFinite(sum))
      throw new RangeError(
        `loss of step ${progress.step + 1}: expected a finite number, got ${sum}: the learning rate is too high for this model`,
      );
    const factor = rateFactor(optimizer, progress.step - first, steps);
    const learningRate = optimizer.learning_rate * factor;
    await this.#optimiser.step(progress.step - first + 1, {
      main: learningRate,
      text: (optimizer.text_learning_rate ?? optimizer.learning_rate) * factor,
    });
    if (this.#ema && this.#request.ema !== null) average(this.#ema, tensors.values, this.#request.ema);
    progress.step++;
    progress.smoothed_loss = progress.smoothed_loss === null ? sum : smoothing * progress.smoothed_loss + (1 - smoothing) * sum;
    progress.losses.push([progress.step, sum]);
    return { loss: sum, smoothedLoss: progress.smoothed_loss, learningRate };
  }

  async #accumulate(items: readonly PreparedItem[], cursor: DataCursor, number: number, draw: number, weight: number): Promise<number> {
    const { loss, seed, caption_dropout: captionDropout, flip } = this.#request;
    const { latentChannels } = this.#settings.model.model.description;
    const batch = cursor.batch(number).map((index, place): BatchItem => {
      const source = items[index]!;
      const { timestep, dropsCaption, isFlipped, conditionShare } = itemChoices({ seed, loss, captionDropout, flip }, draw, place);
      const plane = source.latents[0]!.length / latentChannels;
      return {
        source,
        caption: dropsCaption ? "" : source.item.caption,
        timestep,
        isFlipped,
        dropsCondition: conditionShare < conditionDropout(this.#request),
        noise: itemNoise(seed, [draw, place], latentChannels, plane, loss.noise_offset),
        weight,
        ...this.#reference(items, source, { isFlipped, share: conditionShare, key: randomKey(seed, "picture", draw, place) }),
      };
    });
    const losses = await this.#step.gradients(await assembleBatch(this.#settings, batch, loss.min_snr_gamma));
    return losses.reduce((a, b) => a + b, 0);
  }

  /** One of the pictures of the same concept and size. */
  #reference(
    items: readonly PreparedItem[],
    source: PreparedItem,
    { isFlipped, share, key }: { isFlipped: boolean; share: number; key: bigint },
  ): Pick<BatchItem, "reference"> {
    const { referenceShare } = this.#settings;
    if (referenceShare === undefined) return {};
    const alike = items.filter(({ bucket, item }) => bucket === source.bucket && item.concept === source.item.concept);
    const { latents } = alike[Math.floor(uniform(key) * alike.length)]!;
    return { reference: { latents: latents[isFlipped ? 1 : 0]!, isUsed: share < referenceShare } };
  }

  /**
   * The mean loss of held-out pictures with the weights that would be kept; null where there are none. Remembers the best.
   * @param between awaited after each picture
   */
  async validate(between?: () => Promise<void>): Promise<{ loss: number; best: boolean } | null> {
    if (!this.#best) return null;
    const { pictures, timesteps, noises } = validation;
    const plan: EvaluationPlan = {
      items: evenly(this.#items.validation, pictures),
      timesteps,
      noises,
      captionOf: ({ item }) => item.caption,
      purpose: "validation",
      ...(between && { between }),
    };
    const loss = await this.withKept(async () => mean((await evaluate(this.#step, this.#settings, plan, true)).flat()));
    const { progress } = this;
    const best = progress.best === null || loss < progress.best.loss;
    if (best) {
      progress.best = { step: progress.step, loss };
      this.#best.set(this.#ema ?? this.#step.tensors.values);
    }
    progress.validation.push([progress.step, loss]);
    return { loss, best };
  }

  /** Computes with the averaged weights in the place of the trained ones, where there are such. */
  async withKept<T>(work: () => Promise<T>): Promise<T> {
    if (!this.#ema) return work();
    const { values } = this.#step.tensors;
    const trained = values.slice();
    values.set(this.#ema);
    try {
      return await work();
    } finally {
      values.set(trained);
    }
  }

  /** Puts the weights that are the result into the trained tensors: the best validated ones, else the averages, else the last. */
  finish(): void {
    const kept = this.progress.best ? this.#best : this.#ema;
    if (kept) this.#step.tensors.values.set(kept);
  }
}

function conditionDropout({ settings }: TrainingRequest): number {
  if (settings.method === "controlnet") return settings.condition_dropout;
  return settings.method === "ip-adapter" ? settings.picture_dropout : 0;
}

function average(into: Float32Array, values: Float32Array, decay: number): void {
  for (let i = 0; i < into.length; i++) into[i] = decay * into[i]! + (1 - decay) * values[i]!;
}
