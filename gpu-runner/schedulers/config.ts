/** A scheduler's settings under diffusers' names, and how a model's file, a class's defaults and a request's options make them. */
import { z } from "zod";
import { dpmAlgorithms, type SamplerName, type SamplerOptions, samplerTraits } from "../../shared/samplers.ts";

/** The diffusers classes that are implemented; their names in `scheduler_config.json` and in reference cases. */
export const schedulerClasses = [
  "DDIMScheduler",
  "EulerDiscreteScheduler",
  "EulerAncestralDiscreteScheduler",
  "DPMSolverMultistepScheduler",
] as const;
export type SchedulerClass = (typeof schedulerClasses)[number];

export const predictionTypes = ["epsilon", "v_prediction", "sample"] as const;
export type PredictionType = (typeof predictionTypes)[number];

/** Every setting that any of the classes reads. Values as in diffusers; other keys of a model's file are for other classes. */
const settingsSchema = z.object({
  num_train_timesteps: z.int().min(2),
  beta_start: z.number().positive(),
  beta_end: z.number().positive(),
  beta_schedule: z.enum(["linear", "scaled_linear", "squaredcos_cap_v2"]),
  trained_betas: z.array(z.number()).nullable(),
  prediction_type: z.enum(predictionTypes),
  timestep_spacing: z.enum(["linspace", "leading", "trailing"]),
  timestep_type: z.enum(["discrete", "continuous"]),
  interpolation_type: z.literal("linear"),
  steps_offset: z.int().min(0),
  rescale_betas_zero_snr: z.boolean(),
  use_karras_sigmas: z.boolean().nullable(),
  use_exponential_sigmas: z.boolean().nullable(),
  use_beta_sigmas: z.boolean().nullable(),
  use_lu_lambdas: z.boolean().nullable(),
  use_flow_sigmas: z.literal(false).nullable(),
  sigma_min: z.number().positive().nullable(),
  sigma_max: z.number().positive().nullable(),
  final_sigmas_type: z.enum(["zero", "sigma_min"]),
  clip_sample: z.boolean(),
  clip_sample_range: z.number().positive(),
  set_alpha_to_one: z.boolean(),
  thresholding: z.boolean(),
  dynamic_thresholding_ratio: z.number().min(0).max(1),
  sample_max_value: z.number(),
  algorithm_type: z.enum(dpmAlgorithms),
  solver_order: z.int().min(1).max(3),
  solver_type: z.enum(["midpoint", "heun"]),
  lower_order_final: z.boolean(),
  euler_at_final: z.boolean(),
  lambda_min_clipped: z.number().nullable(),
  // Arguments of diffusers' `step`, which are settings of a whole run here.
  eta: z.number().min(0),
  use_clipped_model_output: z.boolean(),
  s_churn: z.number().min(0),
  s_tmin: z.number().min(0),
  s_tmax: z.number().min(0).nullable(),
  s_noise: z.number().min(0),
});
export type SchedulerConfig = Readonly<z.infer<typeof settingsSchema>>;

const commonDefaults: SchedulerConfig = {
  num_train_timesteps: 1000,
  beta_start: 0.0001,
  beta_end: 0.02,
  beta_schedule: "linear",
  trained_betas: null,
  prediction_type: "epsilon",
  timestep_spacing: "linspace",
  timestep_type: "discrete",
  interpolation_type: "linear",
  steps_offset: 0,
  rescale_betas_zero_snr: false,
  use_karras_sigmas: false,
  use_exponential_sigmas: false,
  use_beta_sigmas: false,
  use_lu_lambdas: false,
  use_flow_sigmas: false,
  sigma_min: null,
  sigma_max: null,
  final_sigmas_type: "zero",
  clip_sample: true,
  clip_sample_range: 1,
  set_alpha_to_one: true,
  thresholding: false,
  dynamic_thresholding_ratio: 0.995,
  sample_max_value: 1,
  algorithm_type: "dpmsolver++",
  solver_order: 2,
  solver_type: "midpoint",
  lower_order_final: true,
  euler_at_final: false,
  lambda_min_clipped: null,
  eta: 0,
  use_clipped_model_output: false,
  s_churn: 0,
  s_tmin: 0,
  s_tmax: null,
  s_noise: 1,
};

/** Defaults of diffusers' constructors where the classes differ. */
const classDefaults = {
  DDIMScheduler: { timestep_spacing: "leading" },
  EulerDiscreteScheduler: {},
  EulerAncestralDiscreteScheduler: {},
  DPMSolverMultistepScheduler: {},
} as const satisfies Record<SchedulerClass, Partial<SchedulerConfig>>;

/**
 * The settings of a scheduler class: diffusers' defaults, overridden by `given` (a `scheduler_config.json`, whose unknown keys and nulls count as absent).
 * @throws RangeError that names the setting, the value and what is expected
 */
export function schedulerConfig(schedulerClass: SchedulerClass, given: Readonly<Record<string, unknown>>): SchedulerConfig {
  const present = Object.entries(given).filter(([, value]) => value !== null && value !== undefined);
  const parsed = settingsSchema.safeParse({ ...commonDefaults, ...classDefaults[schedulerClass], ...Object.fromEntries(present) });
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const setting = issue!.path.join(".");
  throw new RangeError(`${schedulerClass}: setting ${setting} is ${JSON.stringify(given[setting])}: ${issue!.message}`);
}

/**
 * What diffusers' StableDiffusionPipeline makes of its model's scheduler file: files of the first releases have an offset of 0 and clip x0,
 * for which the models were never trained.
 */
export function stableDiffusionConfig(modelConfig: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return { ...modelConfig, steps_offset: 1, clip_sample: false };
}

const scheduleFlags = {
  normal: {},
  karras: { use_karras_sigmas: true },
  exponential: { use_exponential_sigmas: true },
  beta: { use_beta_sigmas: true },
  lu: { use_lu_lambdas: true },
} as const satisfies Record<NonNullable<SamplerOptions["schedule"]>, Partial<SchedulerConfig>>;

const noScheduleFlags = { use_karras_sigmas: false, use_exponential_sigmas: false, use_beta_sigmas: false, use_lu_lambdas: false } as const;

/** The class behind a public sampler name. */
export const samplerClasses = {
  ddim: "DDIMScheduler",
  euler: "EulerDiscreteScheduler",
  euler_a: "EulerAncestralDiscreteScheduler",
  dpmpp_2m: "DPMSolverMultistepScheduler",
  dpmpp_2m_sde: "DPMSolverMultistepScheduler",
  dpmpp_3m: "DPMSolverMultistepScheduler",
  dpmpp_3m_sde: "DPMSolverMultistepScheduler",
  dpm_2m: "DPMSolverMultistepScheduler",
  dpm_2m_sde: "DPMSolverMultistepScheduler",
  dpm_3m: "DPMSolverMultistepScheduler",
  dpm_multistep: "DPMSolverMultistepScheduler",
} as const satisfies Record<SamplerName, SchedulerClass>;

/** Settings for a request: class defaults < the model's configuration (as `stableDiffusionConfig` corrects it) < what the sampler's name stands for < the request's options. */
export function samplerConfig(
  sampler: SamplerName,
  options: SamplerOptions,
  modelConfig: Readonly<Record<string, unknown>>,
): SchedulerConfig {
  const { schedule, ...settings } = options;
  const flags = schedule === undefined ? {} : { ...noScheduleFlags, ...scheduleFlags[schedule] };
  return schedulerConfig(samplerClasses[sampler], {
    ...stableDiffusionConfig(modelConfig),
    ...samplerTraits[sampler].preset,
    ...settings,
    ...flags,
  });
}
