/**
 * DEIS (Zhang and Chen, arXiv 2204.13902), log-rho form: epsilon is extrapolated by a polynomial in log sigma and integrated exactly; as
 * diffusers' DEISMultistepScheduler.
 */
import { combine } from "./combine.ts";
import { originalOf } from "./dpm-solver.ts";
import { noiseBySignal } from "./forward.ts";
import { signalAt } from "./parameterization.ts";
import { solverSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

export const deis = stepSampler({
  schedule: (config, steps) => solverSchedule({ ...config, lambda_min_clipped: null }, steps, { repeatsLast: true }),
  addNoise: noiseBySignal,

  start(config, { timesteps, sigmas }, { batch, begin }) {
    const predictions: Float32Array[] = [];
    return ({ index, x, output }) => {
      const [now, next] = [signalAt(sigmas[index]!), signalAt(sigmas[index + 1]!)];
      const original = originalOf(config, output, x, now, batch);
      predictions.unshift(combine([1 / now.sigma, x], [-now.alpha / now.sigma, original]));
      predictions.length = Math.min(predictions.length, config.solver_order);
      const left = config.lower_order_final && timesteps.length < 15 ? timesteps.length - index : 3;
      const order = Math.min(config.solver_order, index - begin + 1, left);
      const levels = Array.from({ length: order }, (_, i) => sigmas[index - i]!);
      const terms = levels.map((_, i) => [next.alpha * integral(levels, i, sigmas[index + 1]!), predictions[i]!] as const);
      return { sample: combine([next.alpha / now.alpha, x], ...terms), original };
    };
  },
});

/** Integral over sigma from levels[0] to `to` of the i-th Lagrange polynomial in log sigma. */
function integral(levels: readonly number[], i: number, to: number): number {
  const [own, others] = [Math.log(levels[i]!), levels.filter((_, k) => k !== i).map(Math.log)];
  const scale = others.reduce((product, other) => product * (own - other), 1);
  const [a = 0, b = 0] = others;
  const antiderivative = (sigma: number) => {
    const log = Math.log(sigma);
    if (others.length === 0) return sigma;
    if (others.length === 1) return sigma * (log - 1 - a);
    return sigma * (log ** 2 - (2 + a + b) * log + (1 + a) * (1 + b) + 1);
  };
  return (antiderivative(to) - antiderivative(levels[0]!)) / scale;
}
