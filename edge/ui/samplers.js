/** @typedef {import("../../shared/samplers.ts").SamplerName} SamplerName */
/** @typedef {import("../../shared/samplers.ts").SamplerOptionName} SamplerOptionName */
/** @typedef {import("../../shared/samplers.ts").SigmaSchedule} SigmaSchedule */
/** @typedef {{ title: string, options: readonly SamplerOptionName[], schedules: readonly SigmaSchedule[] }} Sampler */
/**
 * How an option is entered: one of `choices`, a yes or no, numbers with commas between, or a number.
 * @typedef {{ label: string, choices: readonly string[] } | { label: string, flag: true } | { label: string, list: true } | { label: string, min?: number, max?: number, step: number | "any" }} OptionControl
 */

// The page has no build step, so this repeats shared/samplers.ts; test/e2e/playground.test.ts compares the two.

const everySampler = /** @type {const} */ (["timestep_spacing", "steps_offset", "rescale_betas_zero_snr"]);
const scheduled = /** @type {const} */ ([...everySampler, "schedule", "rho"]);
const thresholding = /** @type {const} */ (["thresholding", "dynamic_thresholding_ratio", "sample_max_value"]);
const dpmSolver = /** @type {const} */ ([
  ...scheduled,
  ...thresholding,
  "solver_type",
  "final_sigmas_type",
  "euler_at_final",
  "lower_order_final",
  "lambda_min_clipped",
]);
const clipping = /** @type {const} */ (["clip_sample", "clip_sample_range"]);
const churn = /** @type {const} */ (["s_churn", "s_tmin", "s_tmax", "s_noise"]);
const allSchedules = /** @type {const} */ ([
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
]);

/** Samplers with the options and schedules that they understand. @type {Record<SamplerName, Sampler>} */
export const samplers = {
  ddim: {
    title: "DDIM",
    options: [...everySampler, ...thresholding, "eta", ...clipping, "use_clipped_model_output", "set_alpha_to_one"],
    schedules: ["normal"],
  },
  ddpm: { title: "DDPM", options: [...everySampler, ...thresholding, ...clipping, "variance_type"], schedules: ["normal"] },
  pndm: { title: "PNDM", options: [...everySampler, "set_alpha_to_one", "skip_prk_steps"], schedules: ["normal"] },
  plms: { title: "PLMS", options: [...everySampler, "set_alpha_to_one"], schedules: ["normal"] },
  lms: { title: "LMS", options: [...scheduled], schedules: allSchedules },
  euler: { title: "Euler", options: [...scheduled, ...churn, "final_sigmas_type"], schedules: allSchedules },
  euler_a: { title: "Euler a", options: [...scheduled], schedules: allSchedules },
  heun: { title: "Heun", options: [...scheduled, ...clipping], schedules: allSchedules },
  dpm2: { title: "DPM2", options: [...scheduled], schedules: allSchedules },
  dpm2_a: { title: "DPM2 a", options: [...scheduled], schedules: allSchedules },
  dpmpp_2m: {
    title: "DPM++ 2M",
    options: dpmSolver,
    schedules: allSchedules,
  },
  dpmpp_2m_sde: {
    title: "DPM++ 2M SDE",
    options: dpmSolver,
    schedules: allSchedules,
  },
  dpmpp_3m: {
    title: "DPM++ 3M",
    options: dpmSolver,
    schedules: allSchedules,
  },
  dpmpp_3m_sde: {
    title: "DPM++ 3M SDE",
    options: dpmSolver,
    schedules: allSchedules,
  },
  dpm_2m: {
    title: "DPM-Solver 2M",
    options: dpmSolver,
    schedules: allSchedules,
  },
  dpm_2m_sde: {
    title: "DPM-Solver 2M SDE",
    options: dpmSolver,
    schedules: allSchedules,
  },
  dpm_3m: {
    title: "DPM-Solver 3M",
    options: dpmSolver,
    schedules: allSchedules,
  },
  dpm_multistep: {
    title: "DPM-Solver multistep",
    options: [...dpmSolver, "algorithm_type", "solver_order"],
    schedules: allSchedules,
  },
  dpmpp_2s: {
    title: "DPM++ 2S",
    options: [
      "rescale_betas_zero_snr",
      "schedule",
      "rho",
      ...thresholding,
      "solver_type",
      "final_sigmas_type",
      "lower_order_final",
      "lambda_min_clipped",
    ],
    schedules: allSchedules,
  },
  dpm_singlestep: {
    title: "DPM-Solver singlestep",
    options: [
      "rescale_betas_zero_snr",
      "schedule",
      "rho",
      ...thresholding,
      "solver_type",
      "final_sigmas_type",
      "lower_order_final",
      "lambda_min_clipped",
      "algorithm_type",
      "solver_order",
    ],
    schedules: allSchedules,
  },
  dpmpp_sde: { title: "DPM++ SDE", options: [...scheduled, "s_noise"], schedules: allSchedules },
  deis: { title: "DEIS", options: [...scheduled, ...thresholding, "solver_order", "lower_order_final"], schedules: allSchedules },
  unipc: {
    title: "UniPC",
    options: [
      ...scheduled,
      ...thresholding,
      "solver_order",
      "solver_type",
      "final_sigmas_type",
      "lower_order_final",
      "predict_x0",
      "disable_corrector",
    ],
    schedules: allSchedules,
  },
  sa_solver: {
    title: "SA-Solver",
    options: [
      ...scheduled,
      ...thresholding,
      "algorithm_type",
      "predictor_order",
      "corrector_order",
      "lower_order_final",
      "lambda_min_clipped",
    ],
    schedules: allSchedules,
  },
  ipndm: { title: "iPNDM", options: [...scheduled], schedules: allSchedules },
  lcm: {
    title: "LCM",
    options: ["rescale_betas_zero_snr", "original_inference_steps", ...thresholding, ...clipping, "timestep_scaling"],
    schedules: ["normal"],
  },
  tcd: { title: "TCD", options: ["rescale_betas_zero_snr", "original_inference_steps", "eta"], schedules: ["normal"] },
  edm_euler: { title: "EDM Euler", options: ["schedule", "rho", ...churn, "final_sigmas_type"], schedules: ["karras", "exponential"] },
  edm_dpmpp_2m: {
    title: "EDM DPM++ 2M",
    options: [
      "schedule",
      "rho",
      "algorithm_type",
      "solver_order",
      "solver_type",
      "final_sigmas_type",
      "euler_at_final",
      "lower_order_final",
      ...thresholding,
    ],
    schedules: ["karras", "exponential"],
  },
  dpmpp_2s_a: { title: "DPM++ 2S a", options: [...scheduled, "eta", "s_noise"], schedules: allSchedules },
  dpm_fast: { title: "DPM fast", options: ["rescale_betas_zero_snr", "eta", "s_noise"], schedules: ["normal"] },
  dpm_adaptive: { title: "DPM adaptive", options: ["rescale_betas_zero_snr", "eta", "s_noise"], schedules: ["normal"] },
  heunpp2: { title: "Heun++ 2", options: [...scheduled, ...churn], schedules: allSchedules },
  res_multistep: { title: "RES multistep", options: [...scheduled], schedules: allSchedules },
  res_multistep_a: { title: "RES multistep a", options: [...scheduled, "eta", "s_noise"], schedules: allSchedules },
  er_sde: { title: "ER-SDE", options: [...scheduled, "s_noise"], schedules: allSchedules },
  euler_cfg_pp: { title: "Euler CFG++", options: [...scheduled], schedules: allSchedules },
  euler_a_cfg_pp: { title: "Euler a CFG++", options: [...scheduled, "eta", "s_noise"], schedules: allSchedules },
  dpmpp_2m_cfg_pp: { title: "DPM++ 2M CFG++", options: [...scheduled], schedules: allSchedules },
  dpmpp_2s_a_cfg_pp: { title: "DPM++ 2S a CFG++", options: [...scheduled, "eta", "s_noise"], schedules: allSchedules },
  res_multistep_cfg_pp: { title: "RES multistep CFG++", options: [...scheduled], schedules: allSchedules },
};

/** How each option is entered. @type {Record<SamplerOptionName, OptionControl>} */
export const optionControls = {
  schedule: { label: "Noise schedule", choices: allSchedules },
  rho: { label: "Schedule exponent", min: 0.1, max: 20, step: 0.1 },
  timestep_spacing: { label: "Timestep spacing", choices: ["linspace", "leading", "trailing"] },
  steps_offset: { label: "Steps offset", min: 0, max: 100, step: 1 },
  rescale_betas_zero_snr: { label: "Zero terminal SNR", flag: true },
  eta: { label: "Eta", min: 0, max: 1, step: 0.05 },
  clip_sample: { label: "Clip sample", flag: true },
  clip_sample_range: { label: "Clip range", min: 0, step: 0.1 },
  use_clipped_model_output: { label: "Noise from the clipped sample", flag: true },
  set_alpha_to_one: { label: "Final alpha is one", flag: true },
  thresholding: { label: "Dynamic thresholding", flag: true },
  dynamic_thresholding_ratio: { label: "Thresholding ratio", min: 0, max: 1, step: 0.005 },
  sample_max_value: { label: "Thresholding maximum", min: 1, step: 0.1 },
  variance_type: { label: "Variance", choices: ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"] },
  skip_prk_steps: { label: "Skip Runge-Kutta steps", flag: true },
  s_churn: { label: "Churn", min: 0, step: 0.1 },
  s_tmin: { label: "Churn from sigma", min: 0, step: 0.1 },
  s_tmax: { label: "Churn to sigma", min: 0, step: 0.1 },
  s_noise: { label: "Churn noise", min: 0, max: 2, step: 0.01 },
  algorithm_type: {
    label: "Algorithm",
    choices: ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "data_prediction", "noise_prediction"],
  },
  solver_order: { label: "Solver order", min: 1, max: 3, step: 1 },
  solver_type: { label: "Solver type", choices: ["midpoint", "heun", "bh1", "bh2"] },
  final_sigmas_type: { label: "Final sigma", choices: ["zero", "sigma_min"] },
  euler_at_final: { label: "Euler at the last step", flag: true },
  lower_order_final: { label: "Lower order at the end", flag: true },
  lambda_min_clipped: { label: "Least lambda", step: "any" },
  predict_x0: { label: "Extrapolate the picture", flag: true },
  disable_corrector: { label: "Steps without corrector", list: true },
  predictor_order: { label: "Predictor order", min: 1, max: 4, step: 1 },
  corrector_order: { label: "Corrector order", min: 1, max: 4, step: 1 },
  original_inference_steps: { label: "Distilled steps", min: 1, max: 1000, step: 1 },
  timestep_scaling: { label: "Timestep scaling", min: 0, step: 0.5 },
};
