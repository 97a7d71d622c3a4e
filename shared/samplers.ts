import { z } from "zod";
import type { Proof } from "./support.ts";

/** Samplers by their public names; `samplerTraits` says what each is. */
export const samplerNames = [
  "ddim",
  "ddpm",
  "pndm",
  "plms",
  "lms",
  "euler",
  "euler_a",
  "heun",
  "dpm2",
  "dpm2_a",
  "dpmpp_2m",
  "dpmpp_2m_sde",
  "dpmpp_3m",
  "dpmpp_3m_sde",
  "dpm_2m",
  "dpm_2m_sde",
  "dpm_3m",
  "dpm_multistep",
  "dpmpp_2s",
  "dpm_singlestep",
  "dpmpp_sde",
  "deis",
  "unipc",
  "sa_solver",
  "ipndm",
  "lcm",
  "tcd",
  "edm_euler",
  "edm_dpmpp_2m",
  "dpmpp_2s_a",
  "dpm_fast",
  "dpm_adaptive",
  "heunpp2",
  "res_multistep",
  "res_multistep_a",
  "er_sde",
  "euler_cfg_pp",
  "euler_a_cfg_pp",
  "dpmpp_2m_cfg_pp",
  "dpmpp_2s_a_cfg_pp",
  "res_multistep_cfg_pp",
] as const;
export const samplerNameSchema = z.enum(samplerNames);
export type SamplerName = z.infer<typeof samplerNameSchema>;

/** Which noise levels a run visits; `sigmaScheduleTraits` says what each is. */
export const sigmaSchedules = [
  "normal",
  "karras",
  "exponential",
  "beta",
  "lu",
  "polyexponential",
  "kl_optimal",
  "align_your_steps",
  "sgm_uniform",
  "simple",
  "ddim_uniform",
  "linear_quadratic",
] as const;
export type SigmaSchedule = (typeof sigmaSchedules)[number];

interface SigmaScheduleTraits {
  /** As A1111 calls it. */
  title: string;
  /** Other names under which it is found, besides its own and its title; case and punctuation do not count. */
  aliases: readonly string[];
  proof: Proof;
}

export const sigmaScheduleTraits = {
  normal: { title: "Normal", aliases: ["Uniform"], proof: "reference" },
  karras: { title: "Karras", aliases: [], proof: "reference" },
  exponential: { title: "Exponential", aliases: [], proof: "reference" },
  beta: { title: "Beta", aliases: [], proof: "reference" },
  lu: { title: "Lu", aliases: ["DPM-Solver lambdas"], proof: "reference" },
  polyexponential: { title: "Polyexponential", aliases: [], proof: "reference" },
  kl_optimal: { title: "KL Optimal", aliases: [], proof: "second-implementation" },
  align_your_steps: { title: "Align Your Steps", aliases: ["AYS"], proof: "second-implementation" },
  sgm_uniform: { title: "SGM Uniform", aliases: [], proof: "second-implementation" },
  simple: { title: "Simple", aliases: [], proof: "second-implementation" },
  ddim_uniform: { title: "DDIM Uniform", aliases: ["DDIM"], proof: "second-implementation" },
  linear_quadratic: { title: "Linear Quadratic", aliases: [], proof: "second-implementation" },
} as const satisfies Record<SigmaSchedule, SigmaScheduleTraits>;

export const dpmAlgorithms = ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"] as const;
export type DpmAlgorithm = (typeof dpmAlgorithms)[number];

/**
 * Sampler options; all optional, and what is absent comes from the model's scheduler configuration, else from the sampler's own default.
 * Names and meanings are diffusers', except `schedule`, which stands for its `use_…_sigmas` flags. Unknown keys are errors.
 */
export const samplerOptionsSchema = z
  .strictObject({
    schedule: z.enum(sigmaSchedules).optional().describe("spacing of the noise levels"),
    rho: z.number().min(0.1).max(20).optional().describe("exponent of the schedules karras (7) and polyexponential (1)"),
    timestep_spacing: z.enum(["linspace", "leading", "trailing"]).optional(),
    steps_offset: z.int().min(0).max(100).optional(),
    rescale_betas_zero_snr: z.boolean().optional().describe("end the noise schedule at pure noise; for v-prediction models"),
    eta: z
      .number()
      .min(0)
      .max(1)
      .optional()
      .describe("how random: 0 is not at all; DDIM's eta, TCD's gamma, the eta of ancestral samplers"),
    clip_sample: z.boolean().optional(),
    clip_sample_range: z.number().positive().optional(),
    use_clipped_model_output: z.boolean().optional(),
    set_alpha_to_one: z.boolean().optional(),
    thresholding: z.boolean().optional().describe("dynamic thresholding (Imagen)"),
    dynamic_thresholding_ratio: z.number().min(0).max(1).optional(),
    sample_max_value: z.number().min(1).optional(),
    variance_type: z.enum(["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]).optional(),
    skip_prk_steps: z.boolean().optional().describe("begin PNDM without Runge-Kutta steps"),
    s_churn: z.number().min(0).optional(),
    s_tmin: z.number().min(0).optional(),
    s_tmax: z.number().min(0).optional(),
    s_noise: z.number().min(0).max(2).optional(),
    algorithm_type: z.enum([...dpmAlgorithms, "data_prediction", "noise_prediction"]).optional(),
    solver_order: z.int().min(1).max(3).optional(),
    solver_type: z.enum(["midpoint", "heun", "bh1", "bh2"]).optional().describe("midpoint or heun: DPM-Solver; bh1 or bh2: UniPC"),
    final_sigmas_type: z.enum(["zero", "sigma_min"]).optional(),
    euler_at_final: z.boolean().optional(),
    lower_order_final: z.boolean().optional(),
    lambda_min_clipped: z.number().optional(),
    predict_x0: z.boolean().optional(),
    disable_corrector: z.array(z.int().min(0)).max(1000).optional().describe("steps after which UniPC does not correct"),
    predictor_order: z.int().min(1).max(4).optional(),
    corrector_order: z.int().min(1).max(4).optional(),
    original_inference_steps: z.int().min(1).max(1000).optional().describe("steps for which a consistency model was distilled"),
    timestep_scaling: z.number().positive().optional(),
  })
  .meta({ id: "SamplerOptions" });
export type SamplerOptions = z.infer<typeof samplerOptionsSchema>;
export type SamplerOptionName = keyof SamplerOptions;

const everySampler = ["timestep_spacing", "steps_offset", "rescale_betas_zero_snr"] as const;
const thresholding = ["thresholding", "dynamic_thresholding_ratio", "sample_max_value"] as const;
const clipping = ["clip_sample", "clip_sample_range"] as const;
const scheduled = [...everySampler, "schedule", "rho"] as const;
const dpmSolver = [
  ...scheduled,
  ...thresholding,
  "solver_type",
  "final_sigmas_type",
  "euler_at_final",
  "lower_order_final",
  "lambda_min_clipped",
] as const;
const singlestep = [
  ...(["rescale_betas_zero_snr", "schedule", "rho"] as const),
  ...thresholding,
  ...(["solver_type", "final_sigmas_type", "lower_order_final", "lambda_min_clipped"] as const),
] as const;
/** They choose their own levels, between the highest and the lowest of training. */
const wholeRange = {
  options: ["rescale_betas_zero_snr", "eta", "s_noise"],
  schedules: ["normal"],
  preset: {},
} as const satisfies Partial<SamplerTraits>;
const churn = ["s_churn", "s_tmin", "s_tmax", "s_noise"] as const;
const consistency = ["rescale_betas_zero_snr", "original_inference_steps"] as const;

interface SamplerTraits {
  /** How a person would call it; A1111's label where it has one. */
  title: string;
  /** Other names under which it is found, with what they ask for; case and punctuation do not count. */
  aliases: readonly (string | { name: string; options: Readonly<SamplerOptions> })[];
  options: readonly SamplerOptionName[];
  schedules: readonly SigmaSchedule[];
  /** What the name fixes, or sets where the request is silent. */
  preset: Readonly<SamplerOptions>;
  /** Model calls in a step; `varies`: the steps follow from the picture, so that it shares none with another in a batch. */
  calls: 1 | 2 | 3 | "varies";
  /** Whether it draws noise while it runs. `option`: with options that ask for it. */
  draws: "never" | "always" | "option";
  proof: Proof;
}

/** Which options a sampler understands, and what its name stands for. */
export const samplerTraits = {
  ddim: {
    title: "DDIM",
    aliases: ["DDIMScheduler"],
    options: [...everySampler, ...thresholding, "eta", ...clipping, "use_clipped_model_output", "set_alpha_to_one"],
    schedules: ["normal"],
    preset: {},
    calls: 1,
    draws: "option",
    proof: "reference",
  },
  ddpm: {
    title: "DDPM",
    aliases: ["DDPMScheduler"],
    options: [...everySampler, ...thresholding, ...clipping, "variance_type"],
    schedules: ["normal"],
    preset: {},
    calls: 1,
    draws: "always",
    proof: "reference",
  },
  pndm: {
    title: "PNDM",
    aliases: ["PNDMScheduler"],
    options: [...everySampler, "set_alpha_to_one", "skip_prk_steps"],
    schedules: ["normal"],
    preset: {},
    calls: 1,
    draws: "never",
    proof: "reference",
  },
  plms: {
    title: "PLMS",
    aliases: [],
    options: [...everySampler, "set_alpha_to_one"],
    schedules: ["normal"],
    preset: { skip_prk_steps: true },
    calls: 1,
    draws: "never",
    proof: "reference",
  },
  lms: levelSampler("LMS", ["LMSDiscreteScheduler"]),
  euler: {
    ...levelSampler("Euler", ["EulerDiscreteScheduler"]),
    options: [...scheduled, ...churn, "final_sigmas_type"],
    draws: "option",
  },
  euler_a: { ...levelSampler("Euler a", ["Euler ancestral", "EulerAncestralDiscreteScheduler"]), draws: "always" },
  heun: { ...levelSampler("Heun", ["HeunDiscreteScheduler"]), options: [...scheduled, ...clipping], calls: 2 },
  dpm2: { ...levelSampler("DPM2", ["dpm_2", "KDPM2DiscreteScheduler"]), calls: 2 },
  dpm2_a: { ...levelSampler("DPM2 a", ["dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"]), calls: 2, draws: "always" },
  dpmpp_2m: dpmPreset("DPM++ 2M", { algorithm_type: "dpmsolver++", solver_order: 2 }),
  dpmpp_2m_sde: dpmPreset("DPM++ 2M SDE", { algorithm_type: "sde-dpmsolver++", solver_order: 2 }, [
    "dpmpp_2m_sde_gpu",
    { name: "DPM++ 2M SDE Heun", options: { solver_type: "heun" } },
    { name: "dpmpp_2m_sde_heun", options: { solver_type: "heun" } },
    { name: "dpmpp_2m_sde_heun_gpu", options: { solver_type: "heun" } },
  ]),
  dpmpp_3m: dpmPreset("DPM++ 3M", { algorithm_type: "dpmsolver++", solver_order: 3 }),
  dpmpp_3m_sde: dpmPreset("DPM++ 3M SDE", { algorithm_type: "sde-dpmsolver++", solver_order: 3 }, ["dpmpp_3m_sde_gpu"]),
  dpm_2m: dpmPreset("DPM-Solver 2M", { algorithm_type: "dpmsolver", solver_order: 2, final_sigmas_type: "sigma_min" }),
  dpm_2m_sde: dpmPreset("DPM-Solver 2M SDE", { algorithm_type: "sde-dpmsolver", solver_order: 2, final_sigmas_type: "sigma_min" }),
  dpm_3m: dpmPreset("DPM-Solver 3M", { algorithm_type: "dpmsolver", solver_order: 3, final_sigmas_type: "sigma_min" }),
  dpm_multistep: {
    ...dpmPreset("DPM-Solver multistep", {}, ["DPMSolverMultistepScheduler"]),
    options: [...dpmSolver, "algorithm_type", "solver_order"],
    draws: "option",
  },
  dpmpp_2s: {
    ...dpmPreset("DPM++ 2S", { algorithm_type: "dpmsolver++", solver_order: 2, lower_order_final: true }),
    options: [...singlestep],
  },
  dpm_singlestep: {
    ...dpmPreset("DPM-Solver singlestep", {}, ["DPMSolverSinglestepScheduler"]),
    options: [...singlestep, "algorithm_type", "solver_order"],
    draws: "option",
  },
  dpmpp_sde: {
    ...levelSampler("DPM++ SDE", ["dpmpp_sde_gpu", "DPMSolverSDEScheduler"]),
    options: [...scheduled, "s_noise"],
    calls: 2,
    draws: "always",
  },
  deis: solver("DEIS", ["DEISMultistepScheduler"], [...thresholding, "solver_order", "lower_order_final"]),
  unipc: solver(
    "UniPC",
    ["UniPCMultistepScheduler", { name: "uni_pc_bh2", options: { solver_type: "bh2" } }],
    [...thresholding, "solver_order", "solver_type", "final_sigmas_type", "lower_order_final", "predict_x0", "disable_corrector"],
  ),
  sa_solver: {
    ...solver(
      "SA-Solver",
      ["SASolverScheduler"],
      [...thresholding, "algorithm_type", "predictor_order", "corrector_order", "lower_order_final", "lambda_min_clipped"],
    ),
    draws: "always",
  },
  ipndm: toolSampler("iPNDM", ["IPNDMScheduler"], []),
  lcm: {
    title: "LCM",
    aliases: ["LCMScheduler"],
    options: [...consistency, ...thresholding, ...clipping, "timestep_scaling"],
    schedules: ["normal"],
    preset: {},
    calls: 1,
    draws: "always",
    proof: "reference",
  },
  tcd: {
    title: "TCD",
    aliases: ["TCDScheduler"],
    options: [...consistency, "eta"],
    schedules: ["normal"],
    preset: {},
    calls: 1,
    draws: "always",
    proof: "reference",
  },
  edm_euler: {
    title: "EDM Euler",
    aliases: ["EDMEulerScheduler"],
    options: ["schedule", "rho", ...churn, "final_sigmas_type"],
    schedules: ["karras", "exponential"],
    preset: {},
    calls: 1,
    draws: "option",
    proof: "reference",
  },
  edm_dpmpp_2m: {
    title: "EDM DPM++ 2M",
    aliases: ["EDMDPMSolverMultistepScheduler"],
    options: [
      ...(["schedule", "rho", "algorithm_type", "solver_order", "solver_type"] as const),
      ...(["final_sigmas_type", "euler_at_final", "lower_order_final"] as const),
      ...thresholding,
    ],
    schedules: ["karras", "exponential"],
    preset: {},
    calls: 1,
    draws: "option",
    proof: "reference",
  },
  dpmpp_2s_a: {
    ...toolSampler("DPM++ 2S a", ["dpmpp_2s_ancestral"], ["eta", "s_noise"]),
    calls: 2,
    draws: "always",
    proof: "reference",
  },
  dpm_fast: { ...toolSampler("DPM fast", [], []), ...wholeRange, calls: 3, draws: "option", proof: "reference" },
  dpm_adaptive: { ...toolSampler("DPM adaptive", [], []), ...wholeRange, calls: "varies", draws: "option", proof: "reference" },
  heunpp2: { ...toolSampler("Heun++ 2", [], churn), calls: 3, draws: "option" },
  res_multistep: toolSampler("RES multistep", [], []),
  res_multistep_a: {
    ...toolSampler("RES multistep a", ["res_multistep_ancestral"], ["eta", "s_noise"]),
    preset: { timestep_spacing: "linspace", eta: 1 },
    draws: "always",
  },
  er_sde: { ...toolSampler("ER-SDE", [], ["s_noise"]), draws: "always" },
  euler_cfg_pp: toolSampler("Euler CFG++", [], []),
  euler_a_cfg_pp: {
    ...toolSampler("Euler a CFG++", ["euler_ancestral_cfg_pp"], ["eta", "s_noise"]),
    preset: { timestep_spacing: "linspace", eta: 1 },
    draws: "always",
  },
  dpmpp_2m_cfg_pp: toolSampler("DPM++ 2M CFG++", [], []),
  dpmpp_2s_a_cfg_pp: {
    ...toolSampler("DPM++ 2S a CFG++", ["dpmpp_2s_ancestral_cfg_pp"], ["eta", "s_noise"]),
    calls: 2,
    draws: "always",
  },
  res_multistep_cfg_pp: toolSampler("RES multistep CFG++", [], []),
} as const satisfies Record<SamplerName, SamplerTraits>;

/** Samplers that hold latents as x0 + sigma epsilon. */
function levelSampler(title: string, aliases: SamplerTraits["aliases"]): SamplerTraits {
  return { title, aliases, options: scheduled, schedules: sigmaSchedules, preset: {}, calls: 1, draws: "never", proof: "reference" };
}

/** Samplers of k-diffusion and ComfyUI, which visit training's levels from the last to the first whatever the model's file says. */
function toolSampler(title: string, aliases: SamplerTraits["aliases"], options: readonly SamplerOptionName[]): SamplerTraits {
  return {
    ...levelSampler(title, aliases),
    options: [...scheduled, ...options],
    preset: { timestep_spacing: "linspace" },
    proof: "second-implementation",
  };
}

function solver(title: string, aliases: SamplerTraits["aliases"], options: readonly SamplerOptionName[]): SamplerTraits {
  return { ...levelSampler(title, aliases), options: [...scheduled, ...options] };
}

function dpmPreset(title: string, preset: SamplerOptions, aliases: SamplerTraits["aliases"] = []): SamplerTraits {
  const draws = preset.algorithm_type?.startsWith("sde") ? "always" : "never";
  return { ...levelSampler(title, aliases), options: dpmSolver, preset, draws };
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
  return [...issues, ...solverIssues(sampler, { ...traits.preset, ...options })];
}

/** Combinations for which a solver has no formula. */
function solverIssues(sampler: SamplerName, options: SamplerOptions): SamplerOptionIssue[] {
  const traits: SamplerTraits = samplerTraits[sampler];
  const { algorithm_type: algorithm, solver_type: type, solver_order: order, final_sigmas_type: final = "zero" } = options;
  const issues: SamplerOptionIssue[] = [];
  const refuse = (option: SamplerOptionName, expected: string) => issues.push({ option, expected });
  const algorithms = algorithmsOf(sampler);
  if (algorithm && traits.options.includes("algorithm_type") && !algorithms.some(known => known === algorithm)) {
    refuse("algorithm_type", `an algorithm of ${sampler}: ${algorithms.join(", ")}`);
  }
  const types = sampler === "unipc" ? ["bh1", "bh2"] : ["midpoint", "heun"];
  if (type && traits.options.includes("solver_type") && !types.includes(type)) {
    refuse("solver_type", `a type of ${sampler}: ${types.join(", ")}`);
  }
  if ((algorithm === "dpmsolver" || algorithm === "sde-dpmsolver") && final === "zero") {
    refuse("final_sigmas_type", `sigma_min, since ${algorithm} cannot end at noise level zero`);
  }
  if (options.predict_x0 === false && final === "zero") {
    refuse("final_sigmas_type", "sigma_min, since UniPC on epsilon (predict_x0: false) cannot end at noise level zero");
  }
  if (algorithm === "sde-dpmsolver" && order === 3) refuse("solver_order", "1 or 2, the orders of sde-dpmsolver");
  return issues;
}

function algorithmsOf(sampler: SamplerName): readonly string[] {
  if (sampler === "sa_solver") return ["data_prediction", "noise_prediction"];
  if (sampler === "edm_dpmpp_2m") return ["dpmsolver++", "sde-dpmsolver++"];
  return sampler === "dpm_singlestep" ? dpmAlgorithms.filter(algorithm => algorithm !== "sde-dpmsolver") : dpmAlgorithms;
}

/** What a name in the words of diffusers, A1111 or ComfyUI stands for. */
export interface ResolvedSampler {
  sampler: SamplerName;
  /** What the name asks for besides the sampler: its schedule, a solver type. */
  options: SamplerOptions;
}

/**
 * Reads a sampler's name as people write it: the public one, diffusers' class, A1111's or ComfyUI's, with or without a schedule at its end
 * ("DPM++ 2M Karras", "dpmpp_2m_sde_gpu"). Null where it is in no row.
 */
export function resolveSamplerName(text: string): ResolvedSampler | null {
  const key = nameKey(text);
  const whole = samplersByKey.get(key);
  if (whole) return whole;
  for (const [scheduleKey, schedule] of schedulesByKey) {
    const resolved = key.endsWith(scheduleKey) ? samplersByKey.get(key.slice(0, -scheduleKey.length)) : undefined;
    const schedules: readonly SigmaSchedule[] = resolved ? samplerTraits[resolved.sampler].schedules : [];
    if (resolved && schedules.includes(schedule)) return { sampler: resolved.sampler, options: { ...resolved.options, schedule } };
  }
  return null;
}

/** Reads a schedule's name as A1111 and ComfyUI write it. Null where it is in no row. */
export function resolveScheduleName(text: string): SigmaSchedule | null {
  return schedulesByKey.get(nameKey(text)) ?? null;
}

/** "DPM++ 2M" and "dpmpp_2m" are one name. */
function nameKey(text: string): string {
  return text
    .toLowerCase()
    .replaceAll("++", "pp")
    .replace(/[^a-z0-9]/g, "");
}

const samplersByKey: ReadonlyMap<string, ResolvedSampler> = new Map(
  samplerNames.flatMap(sampler => {
    const { title, aliases }: SamplerTraits = samplerTraits[sampler];
    const names = [sampler, title, ...aliases].map(alias => (typeof alias === "string" ? { name: alias, options: {} } : alias));
    return names.map(({ name, options }) => [nameKey(name), { sampler, options }] as const);
  }),
);

const schedulesByKey: ReadonlyMap<string, SigmaSchedule> = new Map(
  sigmaSchedules.flatMap(schedule => {
    const { title, aliases }: SigmaScheduleTraits = sigmaScheduleTraits[schedule];
    return [schedule, title, ...aliases].map(name => [nameKey(name), schedule] as const);
  }),
);
