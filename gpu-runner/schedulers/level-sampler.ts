/**
 * Samplers in the form of k-diffusion: latents are x0 + sigma epsilon, and a step may ask for the picture behind them at any noise level.
 */
import type { SchedulerConfig } from "./config.ts";
import { noiseByLevel, scaleTo } from "./forward.ts";
import { timestepOf, trainedLevels } from "./noise-levels.ts";
import { originalAtLevel } from "./parameterization.ts";
import type { Sampler, SamplerRun } from "./sampler.ts";
import { eulerSchedule, type Schedule } from "./schedule.ts";
import { finishStep, predict, spanOf } from "./step-sampler.ts";

/** Predicted x0 with guidance, and without the prompt (the same where guidance is off). */
export interface Denoised {
  guided: Float32Array;
  unconditional: Float32Array;
}

/** The model as a denoiser of latents at a noise level; `call` is the position that the step belongs to. */
export type Denoise = (x: Float32Array, sigma: number, call: number) => Promise<Denoised>;

export function denoiser(config: SchedulerConfig, plan: Schedule, run: SamplerRun): Denoise {
  const trained = trainedLevels(config);
  return async (x, sigma, call) => {
    run.signal?.throwIfAborted();
    const timestep = sigma === plan.sigmas[call] ? plan.timesteps[call]! : timestepOf(sigma, trained);
    const { guided, unconditional = guided } = await predict(run, scaleTo(sigma, x), timestep, call);
    const original = (output: Float32Array) => originalAtLevel(config.prediction_type, output, x, sigma);
    const denoised = original(guided);
    return { guided: denoised, unconditional: unconditional === guided ? denoised : original(unconditional) };
  };
}

/** One step from the level at `index` to the next. */
export type LevelStep = (x: Float32Array, index: number) => Promise<{ sample: Float32Array; original: Float32Array }>;

export interface LevelContext {
  denoise: Denoise;
  noise: () => Float32Array;
  begin: number;
}

interface LevelSampler {
  schedule?: Sampler["schedule"];
  /** Begins a run. */
  start(config: SchedulerConfig, schedule: Schedule, context: LevelContext): LevelStep;
}

export function levelSampler({ schedule = eulerSchedule, start }: LevelSampler): Sampler {
  return {
    order: 1,
    schedule,
    addNoise: noiseByLevel,
    async sample(config, plan, run) {
      const { begin, end } = spanOf(plan, run);
      const step = start(config, plan, { denoise: denoiser(config, plan, run), noise: run.noise, begin });
      let x = run.latents;
      for (let index = begin; index < end; index++) {
        const { sample, original } = await step(x, index);
        x = await finishStep(plan, run, index, sample, original);
      }
      return x;
    },
  };
}
