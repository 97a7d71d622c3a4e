import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { philoxNoise } from "../../../gpu-runner/noise/philox.ts";
import { betaQuantile } from "../../../gpu-runner/schedulers/beta-distribution.ts";
import { cumulativeAlphas } from "../../../gpu-runner/schedulers/betas.ts";
import { samplerClasses, samplerConfig, schedulerClasses, schedulerConfig } from "../../../gpu-runner/schedulers/config.ts";
import { samplers } from "../../../gpu-runner/schedulers/index.ts";
import { roundHalfEven } from "../../../gpu-runner/schedulers/numeric.ts";
import { predictedNoise, predictedOriginal, velocity } from "../../../gpu-runner/schedulers/parameterization.ts";
import {
  beginOfStrength,
  initialLatents,
  type Model,
  type SamplerRun,
  type StepReport,
  stepIndex,
} from "../../../gpu-runner/schedulers/sampler.ts";
import { type SamplerName, type SamplerOptions, samplerNames, samplerTraits } from "../../../shared/samplers.ts";

const stableDiffusion = {
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  num_train_timesteps: 1000,
  clip_sample: false,
};
const size = 16;

interface Setup {
  sampler: SamplerName;
  options: SamplerOptions;
  prediction_type: "epsilon" | "v_prediction" | "sample";
  steps: number;
  seeds: number[];
}

const predictionTypesOf = (sampler: SamplerName) =>
  ["pndm", "plms", "edm_euler", "edm_dpmpp_2m"].includes(sampler)
    ? (["epsilon", "v_prediction"] as const)
    : (["epsilon", "v_prediction", "sample"] as const);
const stepsOf = (sampler: SamplerName) => ({ min: sampler === "pndm" ? 4 : 1, max: sampler === "lcm" || sampler === "tcd" ? 50 : 60 });

/** Any sampler with any schedule, spacing and prediction type that it has. */
const setups: fc.Arbitrary<Setup> = fc.constantFrom(...samplerNames).chain(sampler =>
  fc.record({
    sampler: fc.constant(sampler),
    options: fc.record({
      schedule: fc.constantFrom(...samplerTraits[sampler].schedules),
      timestep_spacing: fc.constantFrom("linspace" as const, "leading" as const, "trailing" as const),
    }),
    prediction_type: fc.constantFrom(...predictionTypesOf(sampler)),
    steps: fc.integer(stepsOf(sampler)),
    seeds: fc.array(fc.nat(), { minLength: 1, maxLength: sampler === "dpm_adaptive" ? 1 : 3 }),
  }),
);

/** Entries of a schedule's `timesteps`. */
function callsOf({ sampler, options, steps }: Setup): number {
  const visited = options.schedule === "ddim_uniform" ? Math.ceil(999 / Math.floor(1000 / steps)) : steps;
  if (sampler === "pndm") return visited + 9;
  if (sampler === "plms") return visited === 1 ? 1 : visited + 1;
  if (sampler === "dpm_fast") return Math.floor(steps / 3) + 1;
  return samplers[samplerClasses[sampler]].order === 2 ? 2 * visited - 1 : visited;
}

const configOf = ({ sampler, options, prediction_type }: Setup) => samplerConfig(sampler, options, { ...stableDiffusion, prediction_type });
const scheduleOf = (setup: Setup) => samplers[samplerClasses[setup.sampler]].schedule(configOf(setup), setup.steps);

async function run(setup: Setup, more: Partial<SamplerRun> = {}): Promise<Float32Array> {
  const generators = setup.seeds.map(philoxNoise);
  const noise = () => Float32Array.from(generators.flatMap(generator => Array.from(generator(size))));
  return samplers[samplerClasses[setup.sampler]].sample(configOf(setup), scheduleOf(setup), {
    model: async (sample, timestep) => sample.map(x => 0.9 * Math.tanh(0.8 * x + 0.3 * Math.sin(timestep / 150))),
    latents: initialLatents(scheduleOf(setup), noise()),
    batch: setup.seeds.length,
    noise,
    ...more,
  });
}

describe("schedules", () => {
  test("timesteps and noise levels fall, from training's last to its first", () => {
    fc.assert(
      fc.property(setups, setup => {
        const { timesteps, sigmas } = scheduleOf(setup);
        expect(timesteps).toHaveLength(callsOf(setup));
        // The Runge-Kutta steps of PNDM look ahead and come back; an ancestral middle lies below the next level.
        const falls = setup.sampler !== "pndm" && setup.sampler !== "dpm2_a";
        const known = setup.sampler.startsWith("edm") ? [-2, 2] : [0, 999];
        expect(timesteps.every((t, i) => t >= known[0]! && t <= known[1]! && (!falls || t <= (timesteps[i - 1] ?? t)))).toBe(true);
        // The tables of Align Your Steps end at 0.029, a little below the least level of training, which is what `sigma_min` means.
        expect(sigmas.every((sigma, i) => Number.isFinite(sigma) && (!falls || sigma <= (sigmas[i - 1] ?? sigma) * 1.01))).toBe(true);
      }),
    );
  });

  test.each([
    { sampler: "ddim", spacing: "trailing", timesteps: [999, 749, 499, 249] },
    { sampler: "ddim", spacing: "leading", timesteps: [751, 501, 251, 1] },
    { sampler: "euler", spacing: "linspace", timesteps: [999, 666, 333, 0] },
    { sampler: "dpmpp_2m", spacing: "linspace", timesteps: [999, 749, 500, 250] },
    { sampler: "dpmpp_2m", spacing: "leading", timesteps: [801, 601, 401, 201] },
  ] as const)("$sampler, $spacing", ({ sampler, spacing, timesteps }) => {
    const config = samplerConfig(sampler, { timestep_spacing: spacing }, stableDiffusion);
    expect(samplers[samplerClasses[sampler]].schedule(config, 4).timesteps).toEqual(timesteps);
  });

  test("log-linear interpolation has one level more than steps, and none of its steps reaches zero", () => {
    const config = schedulerConfig("EulerDiscreteScheduler", { ...stableDiffusion, interpolation_type: "log_linear" });
    const { timesteps, sigmas } = samplers.EulerDiscreteScheduler.schedule(config, 4);
    expect(timesteps).toHaveLength(4);
    const ratios = [1, 2, 3, 4].map(i => sigmas[i]! / sigmas[i - 1]!);
    expect(Math.max(...ratios) - Math.min(...ratios)).toBeLessThan(1e-6);
    expect([sigmas[0]!.toFixed(3), sigmas[4]!.toFixed(4), sigmas[5]]).toEqual(["14.615", "0.0292", 0]);
  });

  test("zero terminal SNR ends at no signal at all and keeps the first level", () => {
    const plain = cumulativeAlphas(schedulerConfig("DDIMScheduler", stableDiffusion));
    const rescaled = cumulativeAlphas(schedulerConfig("DDIMScheduler", { ...stableDiffusion, rescale_betas_zero_snr: true }));
    expect(rescaled.at(-1)).toBe(0);
    expect(rescaled[0]).toBeCloseTo(plain[0]!, 6);
  });

  const continuous = ["IPNDMScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"];

  test.each(schedulerClasses.filter(scheduler => !continuous.includes(scheduler)))(
    "%s refuses more steps than the model was trained with",
    scheduler => {
      const config = schedulerConfig(scheduler, { num_train_timesteps: 10, original_inference_steps: 10 });
      expect(() => samplers[scheduler].schedule(config, 11)).toThrow("expected an integer of 1 to 10");
    },
  );

  test.each(schedulerClasses)("%s refuses no steps at all", scheduler => {
    expect(() => samplers[scheduler].schedule(schedulerConfig(scheduler, {}), 0)).toThrow(/steps: expected a/);
  });

  test("an offset past the last timestep is refused", () => {
    const config = schedulerConfig("DDIMScheduler", { steps_offset: 100 });
    expect(() => samplers.DDIMScheduler.schedule(config, 100)).toThrow("steps_offset 100");
  });
});

describe("samplers", () => {
  test("end at finite latents after as many reports as steps", async () => {
    await fc.assert(
      fc.asyncProperty(setups, async setup => {
        const reports: StepReport[] = [];
        const latents = await run(setup, { onStep: report => void reports.push(report) });
        expect(latents.every(Number.isFinite)).toBe(true);
        const calls = Array.from({ length: callsOf(setup) }, (_, i) => i + 1);
        if (setup.sampler === "dpm_adaptive") expect(reports.at(-1)).toMatchObject({ step: setup.steps, steps: setup.steps });
        else expect(reports.map(({ step }) => step)).toEqual(calls);
        expect(reports.at(-1)!.sample).toEqual(latents);
      }),
    );
  });

  test("an item's result does not depend on its batch", async () => {
    await fc.assert(
      fc.asyncProperty(setups, async setup => {
        const together = await run(setup);
        const alone = await run({ ...setup, seeds: setup.seeds.slice(-1) });
        expect(together.subarray(-size)).toEqual(alone);
      }),
    );
  });

  test.each(samplerNames)("%s finds the picture that a perfect model knows", async sampler => {
    const original = philoxNoise(5)(size);
    // The SDE of the noise prediction is stiff at high noise levels, where only Karras' schedule takes small steps.
    const options: SamplerOptions = sampler === "dpm_2m_sde" ? { schedule: "karras" } : {};
    const prediction_type = predictionTypesOf(sampler).findLast(type => type !== "v_prediction")!;
    const config = samplerConfig(sampler, options, { ...stableDiffusion, prediction_type });
    const { schedule, sample } = samplers[samplerClasses[sampler]];
    const generator = philoxNoise(6);
    const plan = schedule(config, 30);
    const model = prediction_type === "sample" ? async () => original : perfectModel(sampler, original, plan.alphasCumprod);
    const run = { model, latents: initialLatents(plan, generator(size)), batch: 1, noise: () => generator(size) };
    const found = await sample(config, plan, run);
    // Samplers that end at the least noise level of training (0.03) instead of zero keep that much noise.
    const stops =
      ["ddim", "pndm", "plms", "deis", "sa_solver", "tcd", "dpm_fast", "dpm_adaptive"].includes(sampler) ||
      config.final_sigmas_type === "sigma_min";
    expect(Math.max(...found.map((value, i) => Math.abs(value - original[i]!)))).toBeLessThan(stops ? 0.15 : 1e-4);
  });

  /** What a model has to answer whose picture is known, where it predicts epsilon. */
  function perfectModel(sampler: SamplerName, original: Float32Array, alphasCumprod: Float32Array): Model {
    return async (x, timestep) => {
      if (!sampler.startsWith("edm")) {
        const alphaBar = alphasCumprod[timestep]!;
        return x.map((value, i) => (value - Math.sqrt(alphaBar) * original[i]!) / Math.sqrt(1 - alphaBar));
      }
      // Karras et al., arXiv 2206.00364, table 1, with sigma_data = 1/2: x is scaled by c_in, x0 = c_skip x + c_out F.
      const sigma = Math.exp(4 * timestep);
      const root = Math.sqrt(sigma ** 2 + 0.25);
      return x.map((value, i) => (original[i]! - (0.25 / root) * value) / ((0.5 * sigma) / root));
    };
  }

  test("a run that is stopped and gone on with is the whole run, where nothing is remembered", async () => {
    for (const sampler of ["ddim", "euler", "euler_a", "ddpm", "tcd", "dpmpp_2s_a", "er_sde"] as const) {
      // With its first steps, ER-SDE is of lower order again.
      const memoryless = sampler !== "er_sde";
      const setup: Setup = { sampler, options: {}, prediction_type: "epsilon", steps: 8, seeds: [3, 4] };
      const whole = await run(setup);
      const draws = philoxNoise(9);
      const noises = Array.from({ length: 20 }, () => draws(2 * size));
      const from = async (begin: number, end: number, latents: Float32Array, queue: Float32Array[]) =>
        run(setup, { begin, end, latents, noise: () => queue.shift()! });
      const start = initialLatents(scheduleOf(setup), philoxNoise(2)(2 * size));
      const queue = [...noises];
      const half = await from(0, 5, start, queue);
      const rest = await from(5, 8, half, queue);
      const once = await from(0, 8, start, [...noises]);
      expect(whole).not.toEqual(once);
      if (memoryless) expect(rest).toEqual(once);
      else expect(rest).not.toEqual(once);
    }
  });

  test("latents may be replaced after every call, and the next call sees them", async () => {
    const seen: number[] = [];
    const setup: Setup = { sampler: "heun", options: {}, prediction_type: "epsilon", steps: 4, seeds: [3] };
    const zeros = new Float32Array(size);
    const found = await run(setup, {
      afterStep: (_, next) => {
        seen.push(next);
        return zeros;
      },
    });
    expect(seen).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(found).toBe(zeros);
  });

  test("a part that the schedule lacks is refused", async () => {
    const setup: Setup = { sampler: "euler", options: {}, prediction_type: "epsilon", steps: 4, seeds: [3] };
    await expect(run(setup, { begin: 3, end: 2 })).rejects.toThrow("expected 0 <= begin <= end <= 4");
    await expect(run(setup, { begin: 5 })).rejects.toThrow("got 5, 4");
  });

  test("an adaptive sampler takes one item at a time and cannot inpaint", async () => {
    const setup: Setup = { sampler: "dpm_adaptive", options: {}, prediction_type: "epsilon", steps: 4, seeds: [3, 4] };
    await expect(run(setup)).rejects.toThrow("batch: expected 1");
    await expect(run({ ...setup, seeds: [3] }, { afterStep: sample => sample })).rejects.toThrow("cannot put an inpainted");
  });

  test("what is known as ancestral, stochastic or deterministic draws noise, or none", async () => {
    for (const sampler of samplerNames) {
      let drawn = 0;
      const setup: Setup = { sampler, options: {}, prediction_type: "epsilon", steps: 5, seeds: [3] };
      const noise = () => {
        drawn++;
        return new Float32Array(size);
      };
      await run(setup, { latents: initialLatents(scheduleOf(setup), philoxNoise(2)(size)), noise });
      expect([sampler, drawn > 0]).toEqual([sampler, samplerTraits[sampler].draws === "always"]);
    }
  });

  test("begins where an image is changed by a strength, as diffusers counts", () => {
    const begins = (sampler: SamplerName, steps: number) => {
      const setup: Setup = { sampler, options: {}, prediction_type: "epsilon", steps, seeds: [] };
      return [1, 0.8, 0.5, 0.33, 0].map(strength => beginOfStrength(samplers[samplerClasses[sampler]], scheduleOf(setup), steps, strength));
    };
    expect(begins("euler", 10)).toEqual([0, 2, 5, 7, 10]);
    expect(begins("heun", 10)).toEqual([0, 4, 10, 14, 20]);
    expect(begins("dpm_fast", 30)).toEqual([0, 2, 6, 8, 11]);
  });

  test("stop before the step after an abort, with its reason", async () => {
    const controller = new AbortController();
    let steps = 0;
    const onStep = () => {
      if (++steps === 3) controller.abort(new Error("cancelled"));
    };
    const setup: Setup = { sampler: "euler", options: {}, prediction_type: "epsilon", steps: 10, seeds: [1] };
    await expect(run(setup, { onStep, signal: controller.signal })).rejects.toThrow("cancelled");
    expect(steps).toBe(3);
  });

  test("thresholding looks at each item by itself", async () => {
    const thresholded: Setup = {
      sampler: "dpmpp_2m",
      options: { thresholding: true, sample_max_value: 1.5 },
      prediction_type: "epsilon",
      steps: 6,
      seeds: [1, 2],
    };
    const alone = await run({ ...thresholded, seeds: [2] });
    expect((await run(thresholded)).subarray(size)).toEqual(alone);
    expect(alone).not.toEqual(await run({ ...thresholded, options: {}, seeds: [2] }));
  });

  test("epsilon cannot be read at pure noise", async () => {
    const options = { rescale_betas_zero_snr: true, timestep_spacing: "trailing" } as const;
    await expect(run({ sampler: "ddim", options, prediction_type: "epsilon", steps: 4, seeds: [1] })).rejects.toThrow("v-prediction");
  });
});

describe("settings", () => {
  test("a request's option beats the sampler's name, which beats the model, which beats the default", () => {
    const model = {
      ...stableDiffusion,
      solver_order: 1,
      final_sigmas_type: "zero",
      use_karras_sigmas: true,
      unknown_key: 1,
      sigma_min: null,
    };
    expect(samplerConfig("dpm_3m", { schedule: "beta" }, model)).toMatchObject({
      solver_order: 3,
      final_sigmas_type: "sigma_min",
      use_karras_sigmas: false,
      use_beta_sigmas: true,
      beta_end: 0.012,
      solver_type: "midpoint",
    });
  });

  test("a model's file of the first releases is read as diffusers' pipeline does; a request may still ask for the opposite", () => {
    const model = { ...stableDiffusion, steps_offset: 0, clip_sample: true };
    expect(samplerConfig("ddim", {}, model)).toMatchObject({ steps_offset: 1, clip_sample: false });
    expect(samplerConfig("ddim", { steps_offset: 0, clip_sample: true }, model)).toMatchObject({ steps_offset: 0, clip_sample: true });
  });

  test("a setting out of range is named", () => {
    expect(() => schedulerConfig("EulerDiscreteScheduler", { timestep_spacing: "random" })).toThrow(
      /EulerDiscreteScheduler: setting timestep_spacing is "random"/,
    );
  });
});

test("x0, epsilon and v tell the same of a sample", () => {
  fc.assert(
    fc.property(fc.double({ min: 0.05, max: 0.998, noNaN: true }), alpha => {
      const signal = { alpha, sigma: Math.sqrt(1 - alpha ** 2) };
      const [x0, epsilon] = [philoxNoise(1)(size), philoxNoise(2)(size)];
      const sample = samplers.DDIMScheduler.addNoise(
        { timesteps: [0], sigmas: new Float32Array(2), alphasCumprod: Float32Array.of(alpha ** 2), initNoiseSigma: 1 },
        x0,
        epsilon,
        0,
      );
      const outputs = { epsilon, sample: x0, v_prediction: velocity(x0, epsilon, signal) } as const;
      for (const type of ["epsilon", "sample", "v_prediction"] as const) {
        const [original, noise] = [predictedOriginal, predictedNoise].map(predict => predict(type, outputs[type], sample, signal));
        for (let i = 0; i < size; i++) {
          expect(original![i]!).toBeCloseTo(x0[i]!, 3);
          expect(noise![i]!).toBeCloseTo(epsilon[i]!, 3);
        }
      }
    }),
  );
});

test("of timesteps that truncation made equal the second is meant, as in diffusers", () => {
  const schedule = { timesteps: [998, 20, 0, 0, 0], sigmas: new Float32Array(6), alphasCumprod: new Float32Array(1000), initNoiseSigma: 1 };
  expect([998, 21, 0].map(timestep => stepIndex(schedule, timestep))).toEqual([0, 1, 3]);
});

test("the beta distribution's quantiles", () => {
  // Beta(a, 1) has the quantile p^(1/a); Beta(1/2, 1/2) is the arcsine distribution.
  for (const p of [0, 0.01, 0.3, 0.5, 0.9, 1]) {
    expect(betaQuantile(p, 3, 1)).toBeCloseTo(p ** (1 / 3), 12);
    expect(betaQuantile(p, 0.5, 0.5)).toBeCloseTo(Math.sin((Math.PI * p) / 2) ** 2, 12);
  }
});

test("halves round to even", () => {
  expect([0.5, 1.5, 2.5, 2.4, 2.6].map(roundHalfEven)).toEqual([0, 2, 2, 2, 3]);
});
