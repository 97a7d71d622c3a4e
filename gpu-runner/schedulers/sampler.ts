/** What every sampler is given and gives back. A sampler knows the model only as a function. */
import type { SchedulerConfig } from "./config.ts";
import type { Schedule } from "./schedule.ts";

/** The model's raw prediction for the whole batch of (scaled) latents at a timestep. */
export type Model = (sample: Float32Array, timestep: number) => Promise<Float32Array>;

export interface StepReport {
  /** Steps done, 1 to `steps`. */
  step: number;
  steps: number;
  /** Latents after this step, all items one after another. */
  sample: Float32Array;
  /** The picture that this step foresaw (x0), for previews. */
  original: Float32Array;
}

export interface SamplerRun {
  model: Model;
  /** Unit Gaussian noise of the latents' size, all items of the batch one after another. */
  latents: Float32Array;
  /** Items in `latents`. */
  batch: number;
  /** Draws unit Gaussian noise of the latents' size. Samplers draw in the order in which diffusers' do. */
  noise: () => Float32Array;
  onStep?: (report: StepReport) => void | Promise<void>;
  /** Looked at before every step; the run rejects with its reason. */
  signal?: AbortSignal;
}

export interface Sampler {
  schedule(config: SchedulerConfig, steps: number): Schedule;
  /** The whole loop: noise to latents. */
  sample(config: SchedulerConfig, schedule: Schedule, run: SamplerRun): Promise<Float32Array>;
  /** Forward diffusion of clean latents to the noise level of a timestep of the schedule. */
  addNoise(schedule: Schedule, original: Float32Array, noise: Float32Array, timestep: number): Float32Array;
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
