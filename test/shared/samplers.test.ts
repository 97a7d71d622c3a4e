import { describe, expect, test } from "vitest";
import {
  resolveSamplerName,
  resolveScheduleName,
  type SamplerName,
  type SamplerOptions,
  samplerNames,
  samplerOptionIssues,
  samplerOptionsSchema,
  samplerTraits,
  sigmaSchedules,
  sigmaScheduleTraits,
} from "../../shared/samplers.ts";

/** A valid value of every option. */
const values = {
  schedule: "normal",
  timestep_spacing: "trailing",
  steps_offset: 1,
  rescale_betas_zero_snr: true,
  eta: 0.5,
  clip_sample: true,
  clip_sample_range: 1,
  set_alpha_to_one: false,
  thresholding: true,
  dynamic_thresholding_ratio: 0.9,
  sample_max_value: 2,
  s_churn: 1,
  s_tmin: 0,
  s_tmax: 10,
  s_noise: 1,
  algorithm_type: "dpmsolver++",
  solver_order: 2,
  solver_type: "heun",
  final_sigmas_type: "sigma_min",
  euler_at_final: true,
  lower_order_final: false,
  lambda_min_clipped: -5,
  rho: 5,
  use_clipped_model_output: true,
  variance_type: "fixed_large",
  skip_prk_steps: true,
  predict_x0: true,
  disable_corrector: [0],
  predictor_order: 3,
  corrector_order: 3,
  original_inference_steps: 50,
  timestep_scaling: 10,
} as const satisfies Record<keyof typeof samplerOptionsSchema.shape, unknown>;

/** Where an option has other values for a sampler. */
const ownValues: Partial<Record<SamplerName, SamplerOptions>> = {
  unipc: { solver_type: "bh1" },
  sa_solver: { algorithm_type: "noise_prediction" },
  edm_euler: { schedule: "exponential" },
  edm_dpmpp_2m: { schedule: "exponential" },
};

const options = samplerOptionsSchema.keyof().options;

describe.each(samplerNames)("%s", sampler => {
  test.each(options)("takes or refuses %s as its traits say", option => {
    const given = { ...values, ...ownValues[sampler] };
    const issues = samplerOptionIssues(sampler, samplerOptionsSchema.parse({ [option]: given[option] }));
    const takes: readonly string[] = samplerTraits[sampler].options;
    expect(issues.map(issue => issue.option)).toEqual(takes.includes(option) ? [] : [option]);
  });

  test("is valid without options", () => {
    expect(samplerOptionIssues(sampler, {})).toEqual([]);
  });
});

describe("options", () => {
  test("unknown ones are refused by name", () => {
    expect(samplerOptionsSchema.safeParse({ etta: 1 }).error?.issues[0]).toMatchObject({ code: "unrecognized_keys", keys: ["etta"] });
  });

  test("a schedule that the sampler lacks is refused", () => {
    expect(samplerOptionIssues("edm_euler", { schedule: "lu" })).toEqual([
      { option: "schedule", expected: "a schedule of edm_euler: karras, exponential" },
    ]);
  });

  test.each([
    { sampler: "dpm_2m", given: { final_sigmas_type: "zero" }, option: "final_sigmas_type" },
    { sampler: "dpm_multistep", given: { algorithm_type: "dpmsolver" }, option: "final_sigmas_type" },
    {
      sampler: "dpm_multistep",
      given: { algorithm_type: "sde-dpmsolver", solver_order: 3, final_sigmas_type: "sigma_min" },
      option: "solver_order",
    },
    { sampler: "unipc", given: { predict_x0: false, final_sigmas_type: "zero" }, option: "final_sigmas_type" },
    { sampler: "unipc", given: { solver_type: "heun" }, option: "solver_type" },
    { sampler: "dpmpp_2m", given: { solver_type: "bh1" }, option: "solver_type" },
    { sampler: "dpm_singlestep", given: { algorithm_type: "sde-dpmsolver", final_sigmas_type: "sigma_min" }, option: "algorithm_type" },
    { sampler: "edm_dpmpp_2m", given: { algorithm_type: "data_prediction" }, option: "algorithm_type" },
  ] as const)("$sampler with $given has no formula", ({ sampler, given, option }) => {
    expect(samplerOptionIssues(sampler, given).map(issue => issue.option)).toEqual([option]);
  });
});

describe("names", () => {
  test.each([
    ["Euler a", { sampler: "euler_a", options: {} }],
    ["euler_ancestral", { sampler: "euler_a", options: {} }],
    ["EulerAncestralDiscreteScheduler", { sampler: "euler_a", options: {} }],
    ["DPM++ 2M Karras", { sampler: "dpmpp_2m", options: { schedule: "karras" } }],
    ["dpmpp_2m_sde_gpu", { sampler: "dpmpp_2m_sde", options: {} }],
    ["DPM++ 2M SDE Heun Exponential", { sampler: "dpmpp_2m_sde", options: { solver_type: "heun", schedule: "exponential" } }],
    ["DPM++ SDE Karras", { sampler: "dpmpp_sde", options: { schedule: "karras" } }],
    ["DPM2 a Karras", { sampler: "dpm2_a", options: { schedule: "karras" } }],
    ["uni_pc_bh2", { sampler: "unipc", options: { solver_type: "bh2" } }],
    ["DDIM", { sampler: "ddim", options: {} }],
    ["LMS Karras", { sampler: "lms", options: { schedule: "karras" } }],
    ["DDIM Karras", null],
    ["DDIMInverseScheduler", null],
    ["Restart", null],
    ["", null],
  ])("%s", (name, resolved) => {
    expect(resolveSamplerName(name)).toEqual(resolved);
  });

  test.each(samplerNames)("%s is found under its own name, its title and every alias", sampler => {
    for (const alias of [sampler, samplerTraits[sampler].title, ...samplerTraits[sampler].aliases]) {
      const { name, options } = typeof alias === "string" ? { name: alias, options: {} } : alias;
      expect(resolveSamplerName(name)).toEqual({ sampler, options });
      expect(samplerOptionIssues(sampler, options)).toEqual([]);
    }
  });

  test.each(sigmaSchedules)("the schedule %s is found under its own name, its title and every alias", schedule => {
    const { title, aliases } = sigmaScheduleTraits[schedule];
    for (const name of [schedule, title, ...aliases]) expect(resolveScheduleName(name)).toBe(schedule);
  });

  test("an unknown schedule is none", () => {
    expect(resolveScheduleName("Turbo")).toBeNull();
  });
});
