/** A scheduler's settings under diffusers' names, and how a model's file, a class's defaults and a request's options make them. */
import { z } from "zod";
import type { ModelFamily } from "../../shared/model.ts";
import {
  dpmAlgorithms,
  type SamplerName,
  type SamplerOptions,
  type SigmaSchedule,
  samplerTraits,
  sigmaSchedules,
} from "../../shared/samplers.ts";

/** A schedule of noise levels that has a name of its own; `normal` is the model's plain one. */
export type SigmaScheduleName = Exclude<SigmaSchedule, "normal">;

/** diffusers' classes; their names in `scheduler_config.json` and in reference cases. */
export const diffusersClasses = [
  "DDIMScheduler",
  "DDPMScheduler",
  "PNDMScheduler",
  "LMSDiscreteScheduler",
  "EulerDiscreteScheduler",
  "EulerAncestralDiscreteScheduler",
  "HeunDiscreteScheduler",
  "KDPM2DiscreteScheduler",
  "KDPM2AncestralDiscreteScheduler",
  "DPMSolverMultistepScheduler",
  "DPMSolverSinglestepScheduler",
  "DPMSolverSDEScheduler",
  "DEISMultistepScheduler",
  "UniPCMultistepScheduler",
  "SASolverScheduler",
  "IPNDMScheduler",
  "LCMScheduler",
  "TCDScheduler",
  "EDMEulerScheduler",
  "EDMDPMSolverMultistepScheduler",
  "DDIMInverseScheduler",
  "DPMSolverMultistepInverseScheduler",
] as const;

/** Samplers that diffusers lacks, by the names of their functions in k-diffusion and ComfyUI. */
export const kDiffusionFunctions = [
  "sample_ipndm",
  "sample_dpmpp_2s_ancestral",
  "sample_dpm_fast",
  "sample_dpm_adaptive",
  "sample_heunpp2",
  "sample_res_multistep",
  "sample_er_sde",
  "sample_euler_ancestral_cfg_pp",
  "sample_dpmpp_2m_cfg_pp",
  "sample_dpmpp_2s_ancestral_cfg_pp",
  "sample_res_multistep_cfg_pp",
] as const;

/** Every implemented sampler loop. */
export const schedulerClasses = [...diffusersClasses, ...kDiffusionFunctions] as const;
export type SchedulerClass = (typeof schedulerClasses)[number];

export const predictionTypes = ["epsilon", "v_prediction", "sample"] as const;
export type PredictionType = (typeof predictionTypes)[number];

/** Every setting that any of the classes reads. Values as in diffusers; other keys of a model's file are for other classes. */
const settingsSchema = z.object({
  num_train_timesteps: z.int().min(2),
  beta_start: z.number().positive(),
  beta_end: z.number().positive(),
  beta_schedule: z.enum(["linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid"]),
  trained_betas: z.array(z.number()).nullable(),
  prediction_type: z.enum(predictionTypes),
  timestep_spacing: z.enum(["linspace", "leading", "trailing"]),
  timestep_type: z.enum(["discrete", "continuous"]),
  interpolation_type: z.enum(["linear", "log_linear"]),
  steps_offset: z.int().min(0),
  rescale_betas_zero_snr: z.boolean(),
  use_karras_sigmas: z.boolean().nullable(),
  use_exponential_sigmas: z.boolean().nullable(),
  use_beta_sigmas: z.boolean().nullable(),
  use_lu_lambdas: z.boolean().nullable(),
  use_flow_sigmas: z.literal(false).nullable(),
  /** A schedule that has no flag in diffusers. */
  named_schedule: z.enum(sigmaSchedules).exclude(["normal"]).nullable(),
  align_your_steps: z.enum(["sd1", "sdxl"]),
  rho: z.number().positive().nullable(),
  sigma_schedule: z.enum(["karras", "exponential"]),
  sigma_data: z.number().positive(),
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
  skip_prk_steps: z.boolean(),
  variance_type: z.enum(["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]),
  predict_x0: z.boolean(),
  unipc_solver: z.enum(["bh1", "bh2"]),
  disable_corrector: z.array(z.int()),
  predictor_order: z.int().min(1).max(4),
  corrector_order: z.int().min(1).max(4),
  sa_prediction: z.enum(["data_prediction", "noise_prediction"]),
  original_inference_steps: z.int().min(1),
  timestep_scaling: z.number().positive(),
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
  named_schedule: null,
  align_your_steps: "sd1",
  rho: null,
  sigma_schedule: "karras",
  sigma_data: 0.5,
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
  skip_prk_steps: false,
  variance_type: "fixed_small",
  predict_x0: true,
  unipc_solver: "bh2",
  disable_corrector: [],
  predictor_order: 2,
  corrector_order: 2,
  sa_prediction: "data_prediction",
  original_inference_steps: 50,
  timestep_scaling: 10,
  eta: 0,
  use_clipped_model_output: false,
  s_churn: 0,
  s_tmin: 0,
  s_tmax: null,
  s_noise: 1,
};

const kDiffusionBetas = { beta_start: 0.00085, beta_end: 0.012 } as const;
const consistency = { ...kDiffusionBetas, beta_schedule: "scaled_linear", clip_sample: false, timestep_spacing: "leading" } as const;
const edm = { sigma_min: 0.002, sigma_max: 80, rho: 7 } as const;

/** Defaults of diffusers' constructors where they differ from the common ones. */
const classDefaults: Readonly<Partial<Record<SchedulerClass, Partial<SchedulerConfig>>>> = {
  DDIMScheduler: { timestep_spacing: "leading" },
  DDPMScheduler: { timestep_spacing: "leading" },
  PNDMScheduler: { timestep_spacing: "leading", set_alpha_to_one: false },
  HeunDiscreteScheduler: { ...kDiffusionBetas, clip_sample: false },
  KDPM2DiscreteScheduler: kDiffusionBetas,
  KDPM2AncestralDiscreteScheduler: kDiffusionBetas,
  DPMSolverSinglestepScheduler: { lower_order_final: false },
  DPMSolverSDEScheduler: kDiffusionBetas,
  LCMScheduler: consistency,
  TCDScheduler: { ...consistency, eta: 0.3 },
  EDMEulerScheduler: edm,
  EDMDPMSolverMultistepScheduler: edm,
  DDIMInverseScheduler: { timestep_spacing: "leading" },
  sample_dpmpp_2s_ancestral: { eta: 1 },
  sample_dpmpp_2s_ancestral_cfg_pp: { eta: 1 },
};

/** The same setting names mean other things to some classes; as diffusers, what is foreign to a class becomes its default. */
function readForeign(schedulerClass: SchedulerClass, given: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const { solver_type, algorithm_type, interpolation_type, ...rest } = given;
  switch (schedulerClass) {
    case "EulerDiscreteScheduler":
      return { ...rest, interpolation_type };
    case "UniPCMultistepScheduler":
      return { ...rest, unipc_solver: ["midpoint", "heun", "logrho"].some(foreign => foreign === solver_type) ? "bh2" : solver_type };
    case "SASolverScheduler":
      return { ...rest, sa_prediction: algorithm_type };
    case "DEISMultistepScheduler":
      return rest;
    default: {
      const dpm = { ...rest, solver_type: ["logrho", "bh1", "bh2"].some(foreign => foreign === solver_type) ? "midpoint" : solver_type };
      return { ...dpm, algorithm_type: algorithm_type === "deis" ? "dpmsolver++" : algorithm_type };
    }
  }
}

/**
 * The settings of a scheduler class: diffusers' defaults, overridden by `given` (a `scheduler_config.json`, whose unknown keys and nulls count as absent).
 * @throws RangeError that names the setting, the value and what is expected
 */
export function schedulerConfig(schedulerClass: SchedulerClass, given: Readonly<Record<string, unknown>>): SchedulerConfig {
  const present = Object.entries(readForeign(schedulerClass, given)).filter(([, value]) => value !== null && value !== undefined);
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
  karras: { use_karras_sigmas: true, sigma_schedule: "karras" },
  exponential: { use_exponential_sigmas: true, sigma_schedule: "exponential" },
  beta: { use_beta_sigmas: true },
  lu: { use_lu_lambdas: true },
} as const satisfies Partial<Record<SigmaScheduleName, Partial<SchedulerConfig>>>;

const noScheduleFlags = { use_karras_sigmas: false, use_exponential_sigmas: false, use_beta_sigmas: false, use_lu_lambdas: false } as const;

/** diffusers' flags for a schedule, or our own setting where it has none. */
function scheduleSettings(schedule: SigmaSchedule | undefined): Partial<SchedulerConfig> {
  if (schedule === undefined) return {};
  if (schedule === "normal") return noScheduleFlags;
  const flags = Object.hasOwn(scheduleFlags, schedule)
    ? scheduleFlags[schedule as keyof typeof scheduleFlags]
    : { named_schedule: schedule };
  return { ...noScheduleFlags, ...flags };
}

/** The class behind a public sampler name. */
export const samplerClasses = {
  ddim: "DDIMScheduler",
  ddpm: "DDPMScheduler",
  pndm: "PNDMScheduler",
  plms: "PNDMScheduler",
  lms: "LMSDiscreteScheduler",
  euler: "EulerDiscreteScheduler",
  euler_a: "EulerAncestralDiscreteScheduler",
  heun: "HeunDiscreteScheduler",
  dpm2: "KDPM2DiscreteScheduler",
  dpm2_a: "KDPM2AncestralDiscreteScheduler",
  dpmpp_2m: "DPMSolverMultistepScheduler",
  dpmpp_2m_sde: "DPMSolverMultistepScheduler",
  dpmpp_3m: "DPMSolverMultistepScheduler",
  dpmpp_3m_sde: "DPMSolverMultistepScheduler",
  dpm_2m: "DPMSolverMultistepScheduler",
  dpm_2m_sde: "DPMSolverMultistepScheduler",
  dpm_3m: "DPMSolverMultistepScheduler",
  dpm_multistep: "DPMSolverMultistepScheduler",
  dpmpp_2s: "DPMSolverSinglestepScheduler",
  dpm_singlestep: "DPMSolverSinglestepScheduler",
  dpmpp_sde: "DPMSolverSDEScheduler",
  deis: "DEISMultistepScheduler",
  unipc: "UniPCMultistepScheduler",
  sa_solver: "SASolverScheduler",
  ipndm: "sample_ipndm",
  lcm: "LCMScheduler",
  tcd: "TCDScheduler",
  edm_euler: "EDMEulerScheduler",
  edm_dpmpp_2m: "EDMDPMSolverMultistepScheduler",
  dpmpp_2s_a: "sample_dpmpp_2s_ancestral",
  dpm_fast: "sample_dpm_fast",
  dpm_adaptive: "sample_dpm_adaptive",
  heunpp2: "sample_heunpp2",
  res_multistep: "sample_res_multistep",
  res_multistep_a: "sample_res_multistep",
  er_sde: "sample_er_sde",
  euler_cfg_pp: "sample_euler_ancestral_cfg_pp",
  euler_a_cfg_pp: "sample_euler_ancestral_cfg_pp",
  dpmpp_2m_cfg_pp: "sample_dpmpp_2m_cfg_pp",
  dpmpp_2s_a_cfg_pp: "sample_dpmpp_2s_ancestral_cfg_pp",
  res_multistep_cfg_pp: "sample_res_multistep_cfg_pp",
} as const satisfies Record<SamplerName, SchedulerClass>;

/**
 * Settings for a request: class defaults < the model's configuration (as `stableDiffusionConfig` corrects it) < what the sampler's name stands for
 * < the request's options. The family chooses among the tables of Align Your Steps.
 */
export function samplerConfig(
  sampler: SamplerName,
  options: SamplerOptions,
  modelConfig: Readonly<Record<string, unknown>>,
  family?: ModelFamily,
): SchedulerConfig {
  const { schedule, ...settings } = options;
  return schedulerConfig(samplerClasses[sampler], {
    ...stableDiffusionConfig(modelConfig),
    align_your_steps: family === "sdxl" || family === "sdxl-refiner" ? "sdxl" : "sd1",
    ...samplerTraits[sampler].preset,
    ...settings,
    ...scheduleSettings(schedule),
  });
}
