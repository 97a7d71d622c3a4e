import { z } from "zod";

/**
 * Samplers by their public names. `dpm_multistep` is diffusers' DPMSolverMultistep with everything open; the other `dpm…` names are the same
 * solver with algorithm and order fixed, as users of A1111 and ComfyUI know them.
 */
export const samplerNames = [
  "ddim",
  "euler",
  "euler_a",
  "dpmpp_2m",
  "dpmpp_2m_sde",
  "dpmpp_3m",
  "dpmpp_3m_sde",
  "dpm_2m",
  "dpm_2m_sde",
  "dpm_3m",
  "dpm_multistep",
] as const;
export const samplerNameSchema = z.enum(samplerNames);
export type SamplerName = z.infer<typeof samplerNameSchema>;

export const sigmaSchedules = ["normal", "karras", "exponential", "beta", "lu"] as const;
export type SigmaSchedule = (typeof sigmaSchedules)[number];

export const dpmAlgorithms = ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"] as const;
export type DpmAlgorithm = (typeof dpmAlgorithms)[number];

/**
 * Sampler options; all optional, and what is absent comes from the model's scheduler configuration, else from the sampler's own default.
 * Names and meanings are diffusers', except `schedule`, which stands for its `use_…_sigmas` flags. Unknown keys are errors.
 */
export const samplerOptionsSchema = z
  .strictObject({
    schedule: z.enum(sigmaSchedules).optional().describe("spacing of the noise levels"),
    timestep_spacing: z.enum(["linspace", "leading", "trailing"]).optional(),
    steps_offset: z.int().min(0).max(100).optional(),
    rescale_betas_zero_snr: z.boolean().optional().describe("end the noise schedule at pure noise; for v-prediction models"),
    eta: z.number().min(0).max(1).optional().describe("0: DDIM, 1: as random as DDPM"),
    clip_sample: z.boolean().optional(),
    clip_sample_range: z.number().positive().optional(),
    set_alpha_to_one: z.boolean().optional(),
    thresholding: z.boolean().optional().describe("dynamic thresholding (Imagen)"),
    dynamic_thresholding_ratio: z.number().min(0).max(1).optional(),
    sample_max_value: z.number().min(1).optional(),
    s_churn: z.number().min(0).optional(),
    s_tmin: z.number().min(0).optional(),
    s_tmax: z.number().min(0).optional(),
    s_noise: z.number().min(0).max(2).optional(),
    algorithm_type: z.enum(dpmAlgorithms).optional(),
    solver_order: z.int().min(1).max(3).optional(),
    solver_type: z.enum(["midpoint", "heun"]).optional(),
    final_sigmas_type: z.enum(["zero", "sigma_min"]).optional(),
    euler_at_final: z.boolean().optional(),
    lower_order_final: z.boolean().optional(),
    lambda_min_clipped: z.number().optional(),
  })
  .meta({ id: "SamplerOptions" });
export type SamplerOptions = z.infer<typeof samplerOptionsSchema>;
export type SamplerOptionName = keyof SamplerOptions;

const everySampler = ["timestep_spacing", "steps_offset", "rescale_betas_zero_snr"] as const;
const thresholding = ["thresholding", "dynamic_thresholding_ratio", "sample_max_value"] as const;
const dpmSolver = [
  ...everySampler,
  ...thresholding,
  "schedule",
  "solver_type",
  "final_sigmas_type",
  "euler_at_final",
  "lower_order_final",
  "lambda_min_clipped",
] as const;

interface SamplerTraits {
  /** How a person would call it. */
  title: string;
  options: readonly SamplerOptionName[];
  schedules: readonly SigmaSchedule[];
  /** What the name fixes, or sets where the request is silent. */
  preset: Readonly<SamplerOptions>;
}

/** Which options a sampler understands, and what its name stands for. */
export const samplerTraits = {
  ddim: {
    title: "DDIM",
    options: [...everySampler, ...thresholding, "eta", "clip_sample", "clip_sample_range", "set_alpha_to_one"],
    schedules: ["normal"],
    preset: {},
  },
  euler: {
    title: "Euler",
    options: [...everySampler, "schedule", "s_churn", "s_tmin", "s_tmax", "s_noise", "final_sigmas_type"],
    schedules: ["normal", "karras", "exponential", "beta"],
    preset: {},
  },
  euler_a: {
    title: "Euler a",
    options: [...everySampler, "schedule"],
    schedules: ["normal", "karras", "exponential", "beta"],
    preset: {},
  },
  dpmpp_2m: dpmPreset("DPM++ 2M", { algorithm_type: "dpmsolver++", solver_order: 2 }),
  dpmpp_2m_sde: dpmPreset("DPM++ 2M SDE", { algorithm_type: "sde-dpmsolver++", solver_order: 2 }),
  dpmpp_3m: dpmPreset("DPM++ 3M", { algorithm_type: "dpmsolver++", solver_order: 3 }),
  dpmpp_3m_sde: dpmPreset("DPM++ 3M SDE", { algorithm_type: "sde-dpmsolver++", solver_order: 3 }),
  dpm_2m: dpmPreset("DPM-Solver 2M", { algorithm_type: "dpmsolver", solver_order: 2, final_sigmas_type: "sigma_min" }),
  dpm_2m_sde: dpmPreset("DPM-Solver 2M SDE", { algorithm_type: "sde-dpmsolver", solver_order: 2, final_sigmas_type: "sigma_min" }),
  dpm_3m: dpmPreset("DPM-Solver 3M", { algorithm_type: "dpmsolver", solver_order: 3, final_sigmas_type: "sigma_min" }),
  dpm_multistep: { ...dpmPreset("DPM-Solver multistep", {}), options: [...dpmSolver, "algorithm_type", "solver_order"] },
} as const satisfies Record<SamplerName, SamplerTraits>;

function dpmPreset(title: string, preset: SamplerOptions): SamplerTraits {
  return { title, options: dpmSolver, schedules: sigmaSchedules, preset };
}

/** What is wrong with one option, for a validation error: `sampler_options.<option>: expected <expected>`. */
export interface SamplerOptionIssue {
  option: SamplerOptionName;
  expected: string;
}

/** Whether the options apply to the sampler and to one another; empty where they do. The schema has checked types and ranges already. */
export function samplerOptionIssues(sampler: SamplerName, options: SamplerOptions): SamplerOptionIssue[] {
  const traits: SamplerTraits = samplerTraits[sampler];
  const given = samplerOptionsSchema.keyof().options.filter(option => options[option] !== undefined);
  const issues = given
    .filter(option => !traits.options.includes(option))
    .map(option => ({ option, expected: `an option of ${sampler}: ${traits.options.join(", ")}` }));
  if (options.schedule !== undefined && traits.options.includes("schedule") && !traits.schedules.includes(options.schedule)) {
    issues.push({ option: "schedule", expected: `a schedule of ${sampler}: ${traits.schedules.join(", ")}` });
  }
  return [...issues, ...solverIssues({ ...traits.preset, ...options })];
}

/** Combinations for which DPM-Solver has no formula. */
function solverIssues({ algorithm_type: algorithm = "dpmsolver++", solver_order, final_sigmas_type = "zero" }: SamplerOptions) {
  const issues: SamplerOptionIssue[] = [];
  if (!algorithm.endsWith("++") && final_sigmas_type === "zero") {
    issues.push({ option: "final_sigmas_type", expected: `sigma_min, since ${algorithm} cannot end at noise level zero` });
  }
  if (algorithm === "sde-dpmsolver" && solver_order === 3) {
    issues.push({ option: "solver_order", expected: "1 or 2, the orders of sde-dpmsolver" });
  }
  return issues;
}
