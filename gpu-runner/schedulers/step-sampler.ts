/** Samplers that are one update a model call: the loop around the update, which is the same for all. */
import type { SchedulerConfig } from "./config.ts";
import type { IntervalNoise, Prediction, Sampler, SamplerRun } from "./sampler.ts";
import type { Schedule } from "./schedule.ts";

/** One call of the model, made. */
export interface Call {
  /** Position in the schedule's `timesteps`. */
  index: number;
  timestep: number;
  /** Latents before the call, not scaled. */
  x: Float32Array;
  /** The model's raw prediction. */
  output: Float32Array;
  /** The same without the prompt; `output` where guidance is off. */
  unconditional: Float32Array;
}

/** Takes the latents to the next noise level; holds what it remembers of the calls before. `original` is the predicted x0. */
export type Update = (call: Call) => { sample: Float32Array; original: Float32Array };

export interface UpdateContext {
  /** Items of the batch. */
  batch: number;
  noise: () => Float32Array;
  intervalNoise?: IntervalNoise;
  /** First position of the run. */
  begin: number;
}

interface StepSampler extends Omit<Sampler, "sample" | "order"> {
  order?: 1 | 2;
  /** What the model sees of the latents; default: the latents themselves. */
  scaleInput?(schedule: Schedule, x: Float32Array, index: number, config: SchedulerConfig): Float32Array;
  /** Begins a run. */
  start(config: SchedulerConfig, schedule: Schedule, context: UpdateContext): Update;
}

export function stepSampler({ order = 1, scaleInput, start, schedule, addNoise }: StepSampler): Sampler {
  return {
    order,
    schedule,
    addNoise,
    async sample(config, plan, run) {
      const { begin, end } = spanOf(plan, run);
      const { batch, noise, intervalNoise } = run;
      const update = start(config, plan, { batch, noise, begin, ...(intervalNoise && { intervalNoise }) });
      let x = run.latents;
      for (let index = begin; index < end; index++) {
        run.signal?.throwIfAborted();
        const timestep = plan.timesteps[index]!;
        const input = scaleInput ? scaleInput(plan, x, index, config) : x;
        const { guided, unconditional = guided } = await predict(run, input, timestep, index);
        const { sample, original } = update({ index, timestep, x, output: guided, unconditional });
        x = await finishStep(plan, run, index, sample, original);
      }
      return x;
    },
  };
}

/** @throws RangeError for a part of the schedule that does not exist */
export function spanOf({ timesteps }: Schedule, { begin = 0, end = timesteps.length }: SamplerRun): { begin: number; end: number } {
  if (Number.isInteger(begin) && Number.isInteger(end) && begin >= 0 && begin <= end && end <= timesteps.length) return { begin, end };
  throw new RangeError(`begin, end: expected 0 <= begin <= end <= ${timesteps.length} (the schedule's calls), got ${begin}, ${end}`);
}

export async function predict({ model }: SamplerRun, input: Float32Array, timestep: number, call: number): Promise<Prediction> {
  const prediction = await model(input, timestep, call);
  return prediction instanceof Float32Array ? { guided: prediction } : prediction;
}

/** Lets the caller replace the latents after call `index`, and reports. */
export async function finishStep(
  plan: Schedule,
  run: SamplerRun,
  index: number,
  sample: Float32Array,
  original: Float32Array,
): Promise<Float32Array> {
  const { begin, end } = spanOf(plan, run);
  const kept = run.afterStep ? await run.afterStep(sample, index + 1) : sample;
  await run.onStep?.({ step: index + 1 - begin, steps: end - begin, sample: kept, original });
  return kept;
}
