/**
 * Multistep DPM-Solver (Lu et al., arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095), ODE and SDE, orders 1 to 3; as diffusers'
 * DPMSolverMultistepScheduler. The "++" solvers extrapolate the predicted x0, the others the predicted epsilon.
 */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { noiseOf, originalOf, solverWeights, type Term, type Weights } from "./dpm-solver.ts";
import { edmOriginal, edmScale, edmSchedule } from "./edm.ts";
import { noiseByLevel, noiseBySignal } from "./forward.ts";
import { inverseSolverSchedule } from "./inverse-schedule.ts";
import { type Signal, signalAt } from "./parameterization.ts";
import { type Schedule, solverSchedule } from "./schedule.ts";
import { stepSampler, type Update, type UpdateContext } from "./step-sampler.ts";
import { thresholdSample } from "./threshold.ts";

export const dpmSolverMultistep = stepSampler({
  schedule: (config, steps) => solverSchedule(config, steps, { truncatesCosine: true }),
  addNoise: noiseBySignal,
  start: dpmSolverMultistepStart,
});

/** The same towards noise: what leads from a picture to its latents; as diffusers' DPMSolverMultistepInverseScheduler. */
export const dpmSolverMultistepInverse = stepSampler({
  schedule: inverseSolverSchedule,
  addNoise: noiseBySignal,
  // It ends at a level above zero, which needs no lower order.
  start: (config, schedule, context) => dpmSolverMultistepStart({ ...config, final_sigmas_type: "sigma_min" }, schedule, context),
});

function dpmSolverMultistepStart(config: SchedulerConfig, schedule: Schedule, context: UpdateContext): Update {
  return multistep(config, schedule, context, signalAt, (output, x, level) =>
    originalOf(config, output, x, signalAt(level), context.batch),
  );
}

/** The "++" solvers for models of Karras et al.; as diffusers' EDMDPMSolverMultistepScheduler. */
export const edmDpmSolverMultistep = stepSampler({
  schedule: edmSchedule,
  addNoise: noiseByLevel,
  scaleInput: edmScale,
  start: (config, schedule, context) =>
    multistep(
      config,
      schedule,
      context,
      level => ({ alpha: 1, sigma: level }),
      (output, x, level) => {
        const original = edmOriginal(config, output, x, level);
        return config.thresholding ? thresholdSample(original, context.batch, config) : original;
      },
    ),
});

type SignalAt = (level: number) => Signal;
type OriginalAt = (output: Float32Array, x: Float32Array, level: number) => Float32Array;

function multistep(
  config: SchedulerConfig,
  { timesteps, sigmas }: Schedule,
  { noise, begin }: UpdateContext,
  signal: SignalAt,
  originalAt: OriginalAt,
): Update {
  const stochastic = config.algorithm_type.startsWith("sde");
  const predictions: Float32Array[] = [];
  return ({ index, x, output }) => {
    const now = signal(sigmas[index]!);
    const original = originalAt(output, x, sigmas[index]!);
    predictions.unshift(config.algorithm_type.endsWith("++") ? original : noiseOf(config, output, x, now, original));
    const [h, ...earlier] = [index, index - 1, index - 2].filter(k => k >= 0).map(k => Math.log(sigmas[k]!) - Math.log(sigmas[k + 1]!));
    const weights = solverWeights[config.algorithm_type](now, signal(sigmas[index + 1]!), h!);
    const order = Math.min(orderAt(index, timesteps.length, h!, config), index - begin + 1);
    const sample = combine(
      [weights.x, x],
      ...predictionTerms(order, weights, config, h!, earlier, predictions),
      ...(stochastic ? [[weights.noise, noise()] as const] : []),
    );
    predictions.length = Math.min(predictions.length, config.solver_order);
    return { sample, original };
  };
}

/** Order of step i: it grows with the history, and falls again at the end, where high orders are unstable. */
function orderAt(i: number, steps: number, h: number, config: SchedulerConfig): number {
  const left = steps - i;
  const few = config.lower_order_final && steps < 15;
  // h = 0: between equal noise levels there is nothing to extrapolate. h = infinity (the last level is zero): only order 1 has a limit.
  if (h === 0 || (left === 1 && (config.euler_at_final || few || config.final_sigmas_type === "zero"))) return 1;
  return Math.min(config.solver_order, i + 1, left === 2 && few ? 2 : 3);
}

/** Terms of the predictions m0 (newest), m1, m2: a Taylor expansion around m0 whose derivatives D1, D2 are divided differences. */
function predictionTerms(
  order: number,
  weights: Weights,
  config: SchedulerConfig,
  h: number,
  earlier: readonly number[],
  predictions: readonly Float32Array[],
): Term[] {
  const [m0, m1, m2] = predictions;
  if (order === 1) return [[weights.d0, m0!]];
  const r0 = earlier[0]! / h;
  const d10 = combine([1 / r0, m0!], [-1 / r0, m1!]);
  if (order === 2)
    return [
      [weights.d0, m0!],
      [config.solver_type === "heun" ? weights.d1 : weights.d0 / 2, d10],
    ];
  const r1 = earlier[1]! / h;
  const d11 = combine([1 / r1, m1!], [-1 / r1, m2!]);
  const d1 = combine([1 + r0 / (r0 + r1), d10], [-r0 / (r0 + r1), d11]);
  const d2 = combine([1 / (r0 + r1), d10], [-1 / (r0 + r1), d11]);
  return [
    [weights.d0, m0!],
    [weights.d1, d1],
    [weights.d2, d2],
  ];
}
