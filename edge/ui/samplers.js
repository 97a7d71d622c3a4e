/** @typedef {import("../../shared/samplers.ts").SamplerName} SamplerName */
/** @typedef {import("../../shared/samplers.ts").SamplerOptionName} SamplerOptionName */
/** @typedef {import("../../shared/samplers.ts").SigmaSchedule} SigmaSchedule */
/** @typedef {{ title: string, options: readonly SamplerOptionName[], schedules: readonly SigmaSchedule[] }} Sampler */
/**
 * How an option is entered: one of `choices`, a yes or no, or a number.
 * @typedef {{ label: string, choices: readonly string[] } | { label: string, flag: true } | { label: string, min?: number, max?: number, step: number | "any" }} OptionControl
 */

// The page has no build step, so this repeats shared/samplers.ts; test/e2e/playground.test.ts compares the two.

const everySampler = /** @type {const} */ (["timestep_spacing", "steps_offset", "rescale_betas_zero_snr"]);
const thresholding = /** @type {const} */ (["thresholding", "dynamic_thresholding_ratio", "sample_max_value"]);
const dpmSolver = /** @type {const} */ ([
  ...everySampler,
  ...thresholding,
  "schedule",
  "solver_type",
  "final_sigmas_type",
  "euler_at_final",
  "lower_order_final",
  "lambda_min_clipped",
]);
const eulerSchedules = /** @type {const} */ (["normal", "karras", "exponential", "beta"]);
const allSchedules = /** @type {const} */ ([...eulerSchedules, "lu"]);

/**
 * @param {string} title
 * @returns {Sampler}
 */
const dpm = title => ({ title, options: dpmSolver, schedules: allSchedules });

/** Samplers with the options and schedules that they understand. @type {Record<SamplerName, Sampler>} */
export const samplers = {
  ddim: {
    title: "DDIM",
    options: [...everySampler, ...thresholding, "eta", "clip_sample", "clip_sample_range", "set_alpha_to_one"],
    schedules: ["normal"],
  },
  euler: {
    title: "Euler",
    options: [...everySampler, "schedule", "s_churn", "s_tmin", "s_tmax", "s_noise", "final_sigmas_type"],
    schedules: eulerSchedules,
  },
  euler_a: { title: "Euler a", options: [...everySampler, "schedule"], schedules: eulerSchedules },
  dpmpp_2m: dpm("DPM++ 2M"),
  dpmpp_2m_sde: dpm("DPM++ 2M SDE"),
  dpmpp_3m: dpm("DPM++ 3M"),
  dpmpp_3m_sde: dpm("DPM++ 3M SDE"),
  dpm_2m: dpm("DPM-Solver 2M"),
  dpm_2m_sde: dpm("DPM-Solver 2M SDE"),
  dpm_3m: dpm("DPM-Solver 3M"),
  dpm_multistep: { ...dpm("DPM-Solver multistep"), options: [...dpmSolver, "algorithm_type", "solver_order"] },
};

/** How each option is entered. @type {Record<SamplerOptionName, OptionControl>} */
export const optionControls = {
  schedule: { label: "Noise schedule", choices: allSchedules },
  timestep_spacing: { label: "Timestep spacing", choices: ["linspace", "leading", "trailing"] },
  steps_offset: { label: "Steps offset", min: 0, max: 100, step: 1 },
  rescale_betas_zero_snr: { label: "Zero terminal SNR", flag: true },
  eta: { label: "Eta", min: 0, max: 1, step: 0.05 },
  clip_sample: { label: "Clip sample", flag: true },
  clip_sample_range: { label: "Clip range", min: 0, step: 0.1 },
  set_alpha_to_one: { label: "Final alpha is one", flag: true },
  thresholding: { label: "Dynamic thresholding", flag: true },
  dynamic_thresholding_ratio: { label: "Thresholding ratio", min: 0, max: 1, step: 0.005 },
  sample_max_value: { label: "Thresholding maximum", min: 1, step: 0.1 },
  s_churn: { label: "Churn", min: 0, step: 0.1 },
  s_tmin: { label: "Churn from sigma", min: 0, step: 0.1 },
  s_tmax: { label: "Churn to sigma", min: 0, step: 0.1 },
  s_noise: { label: "Churn noise", min: 0, max: 2, step: 0.01 },
  algorithm_type: { label: "Algorithm", choices: ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"] },
  solver_order: { label: "Solver order", min: 1, max: 3, step: 1 },
  solver_type: { label: "Solver type", choices: ["midpoint", "heun"] },
  final_sigmas_type: { label: "Final sigma", choices: ["zero", "sigma_min"] },
  euler_at_final: { label: "Euler at the last step", flag: true },
  lower_order_final: { label: "Lower order at the end", flag: true },
  lambda_min_clipped: { label: "Least lambda", step: "any" },
};
