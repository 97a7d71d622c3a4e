import { describe, expect, test } from "vitest";
import { samplerNames, samplerOptionIssues, samplerOptionsSchema, samplerTraits } from "../../shared/samplers.ts";

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
} as const satisfies Record<keyof typeof samplerOptionsSchema.shape, unknown>;

const options = samplerOptionsSchema.keyof().options;

describe.each(samplerNames)("%s", sampler => {
  test.each(options)("takes or refuses %s as its traits say", option => {
    const issues = samplerOptionIssues(sampler, samplerOptionsSchema.parse({ [option]: values[option] }));
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
    expect(samplerOptionIssues("euler", { schedule: "lu" })).toEqual([
      { option: "schedule", expected: "a schedule of euler: normal, karras, exponential, beta" },
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
  ] as const)("$sampler with $given has no formula", ({ sampler, given, option }) => {
    expect(samplerOptionIssues(sampler, given).map(issue => issue.option)).toEqual([option]);
  });
});
