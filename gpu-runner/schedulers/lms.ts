/** Linear multistep in the noise level (k-diffusion's sample_lms, order 4); as diffusers' LMSDiscreteScheduler. */
import { combine } from "./combine.ts";
import { noiseByLevel, scaleByLevel } from "./forward.ts";
import { originalAtLevel } from "./parameterization.ts";
import { eulerSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";

const maxOrder = 4;

export const lms = stepSampler({
  schedule: (config, steps) => eulerSchedule({ ...config, final_sigmas_type: "zero" }, steps),
  addNoise: noiseByLevel,
  scaleInput: scaleByLevel,

  start(config, { sigmas }) {
    const derivatives: Float32Array[] = [];
    return ({ index, x, output }) => {
      const sigma = sigmas[index]!;
      const original = originalAtLevel(config.prediction_type, output, x, sigma);
      derivatives.unshift(combine([1 / sigma, x], [-1 / sigma, original]));
      derivatives.length = Math.min(derivatives.length, maxOrder);
      // diffusers counts the schedule's steps also where a run begins amid them: it takes the nodes of those that were not made, too.
      const visited = Array.from({ length: Math.min(index + 1, maxOrder) }, (_, i) => sigmas[index - i]!);
      const terms = derivatives.map((derivative, i) => [lagrangeIntegral(visited, i, sigma, sigmas[index + 1]!), derivative] as const);
      return { sample: combine([1, x], ...terms), original };
    };
  },
});

/** Integral of the i-th Lagrange polynomial over the nodes; Simpson's rule is exact for the cubic that it is at most. */
function lagrangeIntegral(nodes: readonly number[], i: number, from: number, to: number): number {
  const polynomial = (x: number) =>
    nodes.reduce((product, node, k) => (k === i ? product : (product * (x - node)) / (nodes[i]! - node)), 1);
  return ((to - from) / 6) * (polynomial(from) + 4 * polynomial((from + to) / 2) + polynomial(to));
}
