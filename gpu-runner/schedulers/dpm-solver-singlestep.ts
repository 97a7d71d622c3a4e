/**
 * Singlestep DPM-Solver (Lu et al., arXiv 2206.00927) and DPM-Solver++ (arXiv 2211.01095): blocks of one to three calls, each block a step of
 * that order from its first latents; as diffusers' DPMSolverSinglestepScheduler.
 */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { noiseOf, originalOf, solverWeights, type Term, type Weights } from "./dpm-solver.ts";
import { noiseBySignal } from "./forward.ts";
import { signalAt } from "./parameterization.ts";
import { solverSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

export const dpmSolverSinglestep = stepSampler({
  schedule: (config, steps) => solverSchedule({ ...config, timestep_spacing: "linspace" }, steps),
  addNoise: noiseBySignal,

  start(config, { timesteps, sigmas }, { batch, noise, begin }) {
    if (config.algorithm_type === "sde-dpmsolver") throw new RangeError("algorithm_type: sde-dpmsolver has no singlestep formula");
    const stochastic = config.algorithm_type.startsWith("sde");
    const orders = blockOrders(config, timesteps.length);
    const predictions: Float32Array[] = [];
    let start: Float32Array = new Float32Array();
    return ({ index, x, output }) => {
      const now = signalAt(sigmas[index]!);
      const original = originalOf(config, output, x, now, batch);
      predictions.unshift(config.algorithm_type.endsWith("++") ? original : noiseOf(config, output, x, now, original));
      predictions.length = Math.min(predictions.length, 3);
      const order = Math.min(orders[index]!, index - begin + 1);
      if (order === 1) start = x;
      const first = index - order + 1;
      const lambdas = [...sigmas.subarray(first, index + 2)].map(sigma => -Math.log(sigma));
      const h = lambdas.at(-1)! - lambdas[0]!;
      const weights = solverWeights[config.algorithm_type](signalAt(sigmas[first]!), signalAt(sigmas[index + 1]!), h);
      const ratios = lambdas.slice(1, -1).map(lambda => (lambda - lambdas[0]!) / h);
      const sample = combine(
        [weights.x, start],
        ...predictionTerms(predictions.slice(0, order).reverse(), ratios, weights, config),
        ...(stochastic ? [[weights.noise, noise()] as const] : []),
      );
      return { sample, original };
    };
  },
});

/** The order of each call's update: blocks of `solver_order`, broken up at the end (1, 2, 3 to 1, 2, 1), order 1 towards a final level of zero. */
function blockOrders({ solver_order, lower_order_final, final_sigmas_type }: SchedulerConfig, steps: number): number[] {
  const orders = Array.from({ length: steps }, (_, i) => (i % solver_order) + 1);
  if (final_sigmas_type === "zero" || (lower_order_final && steps % solver_order === 0)) orders[steps - 1] = 1;
  return orders;
}

/** Terms of the block's predictions p0 (first), p1, p2, made at shares r0, r1 of the step: a Taylor expansion around p0. */
function predictionTerms(
  predictions: readonly Float32Array[],
  ratios: readonly number[],
  weights: Weights,
  config: SchedulerConfig,
): Term[] {
  const [p0, p1, p2] = predictions;
  const [r1, r2] = ratios;
  const heun = config.solver_type === "heun";
  if (r1 === undefined) return [[weights.d0, p0!]];
  const early = combine([1 / r1, p1!], [-1 / r1, p0!]);
  if (r2 === undefined) {
    return [
      [weights.d0, p0!],
      [heun ? weights.d1 : weights.d0 / 2, early],
    ];
  }
  const late = combine([1 / r2, p2!], [-1 / r2, p0!]);
  if (!heun) {
    return [
      [weights.d0, p0!],
      [weights.d1, late],
    ];
  }
  const first = combine([r2 / (r2 - r1), early], [-r1 / (r2 - r1), late]);
  const second = combine([2 / (r2 - r1), late], [-2 / (r2 - r1), early]);
  return [
    [weights.d0, p0!],
    [weights.d1, first],
    [weights.d2, second],
  ];
}
