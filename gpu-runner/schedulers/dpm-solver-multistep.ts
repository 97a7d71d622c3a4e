/**
 * Multistep DPM-Solver (Lu et al., arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095), ODE and SDE, orders 1 to 3; as diffusers'
 * DPMSolverMultistepScheduler. The "++" solvers extrapolate the predicted x0, the others the predicted epsilon.
 */
import type { DpmAlgorithm } from "../../shared/samplers.ts";
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { predictedNoise, predictedOriginal, type Signal, signalAt } from "./parameterization.ts";
import { dpmSchedule, noiseBySignal } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";
import { thresholdSample } from "./threshold.ts";

type Term = readonly [coefficient: number, values: Float32Array];

export const dpmSolverMultistep = stepSampler({
  schedule: dpmSchedule,
  addNoise: noiseBySignal,

  start(config, { timesteps, sigmas }, { batch, noise, begin }) {
    const stochastic = config.algorithm_type.startsWith("sde");
    const predictions: Float32Array[] = [];
    return ({ index, x, output }) => {
      const now = signalAt(sigmas[index]!);
      const original = originalOf(config, output, x, now, batch);
      predictions.unshift(config.algorithm_type.endsWith("++") ? original : noiseOf(config, output, x, now, original));
      const [h, ...earlier] = [index, index - 1, index - 2].filter(k => k >= 0).map(k => Math.log(sigmas[k]!) - Math.log(sigmas[k + 1]!));
      const weights = solverWeights[config.algorithm_type](now, signalAt(sigmas[index + 1]!), h!);
      const order = Math.min(orderAt(index, timesteps.length, h!, config), index - begin + 1);
      const sample = combine(
        [weights.x, x],
        ...predictionTerms(order, weights, config, h!, earlier, predictions),
        ...(stochastic ? [[weights.noise, noise()] as const] : []),
      );
      predictions.length = Math.min(predictions.length, config.solver_order);
      return { sample, original };
    };
  },
});

function originalOf(config: SchedulerConfig, output: Float32Array, x: Float32Array, now: Signal, batch: number): Float32Array {
  const original = predictedOriginal(config.prediction_type, output, x, now);
  return config.thresholding ? thresholdSample(original, batch, config) : original;
}

function noiseOf(config: SchedulerConfig, output: Float32Array, x: Float32Array, now: Signal, original: Float32Array): Float32Array {
  if (config.thresholding) return combine([1 / now.sigma, x], [-now.alpha / now.sigma, original]);
  return predictedNoise(config.prediction_type, output, x, now);
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

/** Coefficients of x, of the prediction and its first and second derivative in log-SNR, and of fresh noise. */
interface Weights {
  x: number;
  d0: number;
  d1: number;
  d2: number;
  noise: number;
}

/** From signal s to signal t, whose half log-SNRs lie h apart. sde-dpmsolver has no third order: its d2 is never used. */
const solverWeights = {
  "dpmsolver++": (s, t, h) => ({
    x: t.sigma / s.sigma,
    d0: -t.alpha * Math.expm1(-h),
    d1: t.alpha * (Math.expm1(-h) / h + 1),
    d2: -t.alpha * ((Math.expm1(-h) + h) / h ** 2 - 0.5),
    noise: 0,
  }),
  dpmsolver: (s, t, h) => ({
    x: t.alpha / s.alpha,
    d0: -t.sigma * Math.expm1(h),
    d1: -t.sigma * (Math.expm1(h) / h - 1),
    d2: -t.sigma * ((Math.expm1(h) - h) / h ** 2 - 0.5),
    noise: 0,
  }),
  "sde-dpmsolver++": (s, t, h) => ({
    x: (t.sigma / s.sigma) * Math.exp(-h),
    d0: -t.alpha * Math.expm1(-2 * h),
    d1: t.alpha * (Math.expm1(-2 * h) / (2 * h) + 1),
    d2: t.alpha * ((-Math.expm1(-2 * h) - 2 * h) / (2 * h) ** 2 - 0.5),
    noise: t.sigma * Math.sqrt(Math.max(-Math.expm1(-2 * h), 0)),
  }),
  "sde-dpmsolver": (s, t, h) => ({
    x: t.alpha / s.alpha,
    d0: -2 * t.sigma * Math.expm1(h),
    d1: -2 * t.sigma * (Math.expm1(h) / h - 1),
    d2: 0,
    noise: t.sigma * Math.sqrt(Math.max(Math.expm1(2 * h), 0)),
  }),
} as const satisfies Record<DpmAlgorithm, (s: Signal, t: Signal, h: number) => Weights>;
