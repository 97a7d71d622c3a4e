/** A sampler's whole trajectory with a fixed function in the model's place, its schedule, and its forward diffusion. */
import { z } from "zod";
import type { TensorF32 } from "../../components.ts";
import { type SchedulerClass, schedulerClasses, schedulerConfig } from "../../schedulers/config.ts";
import { samplers } from "../../schedulers/index.ts";
import { velocity } from "../../schedulers/parameterization.ts";
import { initialLatents, type SamplerRun, stepIndex } from "../../schedulers/sampler.ts";
import type { Schedule } from "../../schedulers/schedule.ts";
import { float32Input, type GoldenTensor, type VerifyContext, type VerifyKind } from "../kind.ts";

/** Arguments of diffusers' `step` that are settings here. */
const stepArguments = ["eta", "use_clipped_model_output", "s_churn", "s_tmin", "s_tmax", "s_noise"] as const;

const paramsSchema = z.object({
  scheduler: z.enum(schedulerClasses),
  config: z.record(z.string(), z.unknown()).default({}),
  numInferenceSteps: z.int(),
  stepArgs: z.record(z.string(), z.unknown()).default({}),
  addNoiseTimesteps: z.array(z.number()).default([]),
  /** Whether the model predicts something else without the prompt; a case of ours for samplers that look at it. */
  unconditional: z.boolean().default(false),
});

export const schedulerKind: VerifyKind = {
  kind: "scheduler",
  supports({ params }) {
    if (unsupportedScheduler(params.scheduler)) return unsupportedScheduler(params.scheduler);
    const unknown = Object.keys(paramsSchema.parse(params).stepArgs).find(argument => !stepArguments.some(known => known === argument));
    return unknown === undefined ? null : `step argument ${unknown}`;
  },

  async run({ params, inputs }, context) {
    const { scheduler, config, numInferenceSteps, stepArgs, addNoiseTimesteps, unconditional } = paramsSchema.parse(params);
    const settings = schedulerConfig(scheduler, { ...config, ...stepArgs });
    const schedule = samplers[scheduler].schedule(settings, numInferenceSteps);
    const latents = float32Input(context, "noise");
    const noise = "noises" in inputs ? queuedNoise(float32Input(context, "noises")) : noNoise;
    const steps: Float32Array[] = [];
    await samplers[scheduler].sample(settings, schedule, {
      model: async (sample, timestep) => ({
        guided: sample.map(x => 0.9 * Math.tanh(0.8 * x + 0.3 * Math.sin(timestep / 150))),
        ...(unconditional && { unconditional: sample.map(x => 0.7 * Math.tanh(0.6 * x - 0.2 * Math.cos(timestep / 200))) }),
      }),
      latents: initialLatents(schedule, latents.data),
      batch: latents.shape[0]!,
      noise,
      // The case holds what the Brownian motion of DPMSolverSDE gave.
      intervalNoise: noise,
      onStep: ({ sample }) => void steps.push(sample),
    });
    return {
      steps: stack(steps, latents.shape),
      timesteps: vector(schedule.timesteps),
      sigmas: vector(schedule.sigmas),
      init_noise_sigma: vector([schedule.initNoiseSigma]),
      ...(addNoiseTimesteps.length > 0 ? forwardDiffusion(scheduler, schedule, addNoiseTimesteps, context) : {}),
    };
  },
};

/** Why a scheduler class of a case cannot be run; null where it can. */
export function unsupportedScheduler(name: unknown): string | null {
  return schedulerClasses.some(known => known === name) ? null : `scheduler ${name}`;
}

/** Hands out the rows of a tensor [draws, …] in order. */
function queuedNoise({ data, shape }: TensorF32): SamplerRun["noise"] {
  const [draws, ...rest] = shape;
  const size = rest.reduce((product, dim) => product * dim, 1);
  let drawn = 0;
  return () => {
    if (drawn === draws) throw new Error(`the sampler draws noise more than the case's ${draws} times`);
    return data.subarray(drawn * size, ++drawn * size);
  };
}

/** For a case without noises: its sampler has to be deterministic. */
function noNoise(): never {
  throw new Error("the sampler draws noise, and the case has none");
}

/** Row i: `addNoiseOriginal` diffused to the i-th timestep, and the velocity between it and the noise. */
function forwardDiffusion(scheduler: SchedulerClass, schedule: Schedule, timesteps: readonly number[], context: VerifyContext) {
  const original = float32Input(context, "addNoiseOriginal");
  const noise = float32Input(context, "addNoiseNoise");
  const noisy = timesteps.map(timestep => samplers[scheduler].addNoise(schedule, original.data, noise.data, stepIndex(schedule, timestep)));
  const velocities = timesteps.map(timestep => {
    const alphaBar = schedule.alphasCumprod[Math.round(timestep)]!;
    return velocity(original.data, noise.data, { alpha: Math.sqrt(alphaBar), sigma: Math.sqrt(1 - alphaBar) });
  });
  return { add_noise: stack(noisy, original.shape), get_velocity: stack(velocities, original.shape) };
}

function stack(rows: readonly Float32Array[], shape: readonly number[]): GoldenTensor {
  return { data: rows.flatMap(row => Array.from(row)), shape: [rows.length, ...shape] };
}

function vector(values: ArrayLike<number>): GoldenTensor {
  return { data: values, shape: [values.length] };
}
