/**
 * SA-Solver (Xue et al., arXiv 2309.05019): stochastic Adams predictor and corrector, with noise only in the middle of the run; as diffusers'
 * SASolverScheduler.
 */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { noiseOf, originalOf } from "./dpm-solver.ts";
import { noiseByAlphaBar } from "./forward.ts";
import { signalAt } from "./parameterization.ts";
import { type Schedule, solverSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

export const saSolver = stepSampler({
  schedule: (config, steps) => solverSchedule(config, steps, { repeatsLast: true }),
  // diffusers diffuses to the timestep, not to the schedule's level; timesteps between whole ones have only a level.
  addNoise: (schedule, original, noise, position) =>
    noiseByAlphaBar({ ...schedule, timesteps: schedule.timesteps.map(Math.round) }, original, noise, position),

  start(config, { timesteps, sigmas }, { batch, noise, begin }) {
    const history = Math.max(config.predictor_order, config.corrector_order - 1);
    const predictions: Float32Array[] = [];
    let last: { x: Float32Array; noise: Float32Array; tau: number; correctorOrder: number } | null = null;
    return ({ index, timestep, x: predicted, output }) => {
      const now = signalAt(sigmas[index]!);
      const original = originalOf(config, output, predicted, now, batch);
      const prediction = config.sa_prediction === "data_prediction" ? original : noiseOf(config, output, predicted, now, original);
      const seen = [prediction, ...predictions];
      const x = last ? adamsStep(config, { sigmas, from: index - 1, newest: index, order: last.correctorOrder, ...last }, seen) : predicted;
      predictions.unshift(prediction);
      predictions.length = Math.min(predictions.length, history);
      const done = Math.min(index - begin, history);
      const left = config.lower_order_final ? timesteps.length - index : Number.POSITIVE_INFINITY;
      const order = Math.min(config.predictor_order, left, done + 1);
      const tau = timestep >= 200 && timestep <= 800 ? 1 : 0;
      last = { x, noise: noise(), tau, correctorOrder: Math.min(config.corrector_order, left + 1, done + 2) };
      const sample = adamsStep(config, { sigmas, from: index, newest: index, order, ...last }, predictions);
      return { sample, original };
    };
  },
});

interface AdamsStep {
  sigmas: Schedule["sigmas"];
  /** The step goes from the level at `from` to the next; the newest prediction was made at `newest`. */
  from: number;
  newest: number;
  order: number;
  x: Float32Array;
  noise: Float32Array;
  tau: number;
}

/** Equations 14 and 17: one exponential step along the Lagrange polynomial through `predictions`, newest first. */
function adamsStep(config: SchedulerConfig, step: AdamsStep, predictions: readonly Float32Array[]): Float32Array {
  const { sigmas, from, newest, order, x, noise, tau } = step;
  const lambda = (position: number) => -Math.log(sigmas[position]!);
  const [s, t] = [signalAt(sigmas[from]!), signalAt(sigmas[from + 1]!)];
  const h = lambda(from + 1) - lambda(from);
  const nodes = Array.from({ length: order }, (_, i) => lambda(newest - i) - lambda(from + 1));
  const data = config.sa_prediction === "data_prediction";
  // Integrals of (lambda - lambda_t)^k times the exponential weight, over the step.
  const rate = data ? 1 + tau ** 2 : -1;
  const moments = exponentialMoments(rate, h, order);
  const weights = lagrangeCoefficients(nodes).map(row => row.reduce((sum, coefficient, power) => sum + coefficient * moments[power]!, 0));
  if (data && order === 2) correctSecondOrder(weights, nodes, h, rate, newest > from);
  const scale = data ? rate * t.alpha : -(1 + tau ** 2) * t.sigma;
  const fresh = data ? Math.sqrt(-Math.expm1(-2 * tau ** 2 * h)) : tau * Math.sqrt(Math.expm1(2 * h));
  return combine(
    [data ? Math.exp(-(tau ** 2) * h) * (t.sigma / s.sigma) : t.alpha / s.alpha, x],
    ...weights.map((weight, i) => [scale * weight, predictions[i]!] as const),
    [t.sigma * fresh, noise],
  );
}

/** The released solver's change to the weights of order 2, which keeps their sum. */
function correctSecondOrder(weights: number[], nodes: readonly number[], h: number, rate: number, corrects: boolean): void {
  if (h === 0) return;
  const exact = (h * rate + Math.expm1(-rate * h)) / rate ** 2;
  const change = corrects ? h / 2 - exact / h : (h ** 2 / 2 - exact) / (nodes[0]! - nodes[1]!);
  weights[0]! += change;
  weights[1]! -= change;
}

/** Integral from -h to 0 of u^k exp(rate u) du for k = 0 … count - 1. */
function exponentialMoments(rate: number, h: number, count: number): number[] {
  const moments: number[] = [];
  for (let k = 0; k < count; k++) {
    // By parts: [u^k exp(rate u) / rate] - k / rate * (moment of k - 1).
    const boundary = k === 0 ? -Math.expm1(-rate * h) : -((-h) ** k) * Math.exp(-rate * h);
    moments.push((boundary - (k > 0 ? k * moments[k - 1]! : 0)) / rate);
  }
  return moments;
}

/** Row i: coefficients, by rising power, of the polynomial that is 1 at node i and 0 at the others. */
function lagrangeCoefficients(nodes: readonly number[]): number[][] {
  return nodes.map((node, i) => {
    const others = nodes.filter((_, k) => k !== i);
    let product = [1];
    for (const other of others) product = [0, ...product].map((value, power) => value - other * (product[power] ?? 0));
    const scale = others.reduce((total, other) => total * (node - other), 1);
    return product.map(value => value / scale);
  });
}
