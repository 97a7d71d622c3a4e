/** What every sampler is given and gives back. A sampler knows the model only as a function. */
import type { SchedulerConfig } from "./config.ts";
import type { Schedule } from "./schedule.ts";

/** What the model says of one (scaled) sample, in the form that the configuration's `prediction_type` names. */
export interface Prediction {
  /** With guidance, where there is any. */
  guided: Float32Array;
  /** Of the negative prompt alone, for samplers that step along it (`_cfg_pp`); absent where guidance is off. */
  unconditional?: Float32Array;
}

/**
 * The model for the whole batch. `sample` is scaled as the model wants it; `timestep` may be fractional; `call` is the position in the
 * schedule's `timesteps`. A sampler may ask several times at one position. A bare array is a prediction without an unconditional part.
 */
export type Model = (sample: Float32Array, timestep: number, call: number) => Promise<Float32Array | Prediction>;

export interface StepReport {
  /** Calls done in this run, 1 to `steps`. */
  step: number;
  /** Calls of this run: `end - begin`. */
  steps: number;
  /** Latents after this step, all items one after another. */
  sample: Float32Array;
  /** The picture that this step foresaw (x0), for previews. */
  original: Float32Array;
}

export interface SamplerRun {
  model: Model;
  /**
   * The latents at the noise level of call `begin`, all items of the batch one after another: unit Gaussian noise times the schedule's
   * `initNoiseSigma` for a whole run, what `addNoise` gives for a run that starts in the middle, or what an earlier run left.
   */
  latents: Float32Array;
  /** Items in `latents`. */
  batch: number;
  /** Draws unit Gaussian noise of the latents' size. Samplers draw in the order in which diffusers' do. */
  noise: () => Float32Array;
  /** Increment of a Brownian motion between two times, divided by its deviation; for samplers that need it. Default: a path drawn from `noise`. */
  intervalNoise?: IntervalNoise;
  /** First position in the schedule's `timesteps` to run, and the one before which to stop. Default: all. */
  begin?: number;
  end?: number;
  /** May replace the latents after each call; `next` is the position that comes next (`timesteps.length` after the last). */
  afterStep?: (sample: Float32Array, next: number) => Float32Array | Promise<Float32Array>;
  onStep?: (report: StepReport) => void | Promise<void>;
  /** Looked at before every step; the run rejects with its reason. */
  signal?: AbortSignal;
}

/** Unit Gaussian for the interval; the same for the same interval, and consistent between overlapping ones. */
export type IntervalNoise = (from: number, to: number) => Float32Array;

export interface Sampler {
  /** Entries that a step has in the schedule's `timesteps`: 2 for samplers that ask the model twice a step (but once in the last). */
  order: 1 | 2;
  schedule(config: SchedulerConfig, steps: number): Schedule;
  /** The whole loop, from call `begin` to before call `end`. */
  sample(config: SchedulerConfig, schedule: Schedule, run: SamplerRun): Promise<Float32Array>;
  /** Forward diffusion of clean latents to the noise level of the call at a position in `timesteps`. */
  addNoise(schedule: Schedule, original: Float32Array, noise: Float32Array, position: number): Float32Array;
}

/** The latents from which a whole run starts. */
export function initialLatents({ initNoiseSigma }: Schedule, noise: Float32Array): Float32Array {
  return noise.map(value => value * initNoiseSigma);
}

/**
 * Where a run of `steps` starts that changes a picture by `strength` (0: not at all, 1: wholly); as diffusers' img2img. A schedule that groups
 * the calls of its steps starts at as great a share of its groups.
 */
export function beginOfStrength({ order }: Sampler, { timesteps, orders }: Schedule, steps: number, strength: number): number {
  const skipped = Math.max(steps - Math.min(Math.trunc(steps * strength), steps), 0);
  return orders ? Math.round((skipped / steps) * timesteps.length) : skipped * order;
}

/**
 * Position of the timestep in the schedule that lies nearest: one that went through float32 or was truncated may differ a little.
 * Of timesteps that truncation made equal the second counts, as in diffusers.
 */
export function stepIndex({ timesteps }: Schedule, timestep: number): number {
  const distances = timesteps.map(other => Math.abs(other - timestep));
  const first = distances.indexOf(Math.min(...distances));
  return distances[first + 1] === distances[first] && timesteps[first + 1] === timesteps[first] ? first + 1 : first;
}
