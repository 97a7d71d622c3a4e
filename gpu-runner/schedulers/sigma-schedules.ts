/**
 * Named schedules: which noise levels a run visits between the highest and the lowest. Each gives the levels in falling order, without the
 * zero at the end. Those that look at the training levels always span all of them.
 */
import { betaQuantile } from "./beta-distribution.ts";
import type { SigmaScheduleName } from "./config.ts";
import { levelAt, type TrainedLevels } from "./noise-levels.ts";
import { interpolate, linspace } from "./numeric.ts";

export interface SigmaRange {
  highest: number;
  lowest: number;
  /** Exponent of `karras` (default 7) and `polyexponential` (default 1). */
  rho: number | null;
  trained: TrainedLevels;
  /** Which of the tables of Align Your Steps. */
  alignFor: "sd1" | "sdxl";
}

type SigmaScheduleFunction = (range: SigmaRange, steps: number) => number[];

export const sigmaScheduleFunctions = {
  karras: ({ highest, lowest, rho }, steps) => karrasSigmas(highest, lowest, rho ?? 7, steps),
  exponential: exponentialSigmas,
  // Evenly spaced in log-SNR (Lu et al., arXiv 2206.00927); what differs from `exponential` is only how diffusers rounds timesteps.
  lu: exponentialSigmas,
  // Beta(0.6, 0.6): dense at both ends (Beta Sampling is All You Need, arXiv 2407.12173).
  beta: ({ highest, lowest }, steps) => linspace(0, 1, steps).map(ramp => lowest + betaQuantile(1 - ramp, 0.6, 0.6) * (highest - lowest)),
  // k-diffusion, get_sigmas_polyexponential.
  polyexponential: ({ highest, lowest, rho }, steps) =>
    linspace(1, 0, steps).map(ramp => Math.exp(ramp ** (rho ?? 1) * Math.log(highest / lowest) + Math.log(lowest))),
  // Sabour et al., arXiv 2404.14507, theorem 3.1; as ComfyUI's kl_optimal_scheduler.
  kl_optimal: ({ highest, lowest }, steps) => linspace(Math.atan(highest), Math.atan(lowest), steps).map(Math.tan),
  align_your_steps: ({ alignFor }, steps) => logLinear(alignYourSteps[alignFor], steps),
  // ComfyUI and A1111: linspace over timesteps, the last left out.
  sgm_uniform: ({ trained }, steps) =>
    linspace(trained.sigmas.length - 1, 0, steps + 1)
      .slice(0, -1)
      .map(timestep => levelAt(timestep, trained)),
  // ComfyUI's simple_scheduler: training levels at equal distances from the highest.
  simple: ({ trained: { sigmas } }, steps) =>
    Array.from({ length: steps }, (_, i) => sigmas[sigmas.length - 1 - Math.trunc((i * sigmas.length) / steps)]!),
  ddim_uniform: ddimUniform,
  linear_quadratic: linearQuadratic,
} as const satisfies Record<SigmaScheduleName, SigmaScheduleFunction>;

/** Karras et al., arXiv 2206.00364, equation 5. */
export function karrasSigmas(highest: number, lowest: number, rho: number, steps: number): number[] {
  const [high, low] = [highest ** (1 / rho), lowest ** (1 / rho)];
  return linspace(0, 1, steps).map(ramp => (high + ramp * (low - high)) ** rho);
}

function exponentialSigmas({ highest, lowest }: SigmaRange, steps: number): number[] {
  return linspace(Math.log(highest), Math.log(lowest), steps).map(Math.exp);
}

/**
 * ComfyUI's ddim_scheduler: every n-th training level from the second on. The stride is rounded down, so that there may be a few more levels
 * than steps asked for; pictures of that tool come out alike only with all of them.
 */
function ddimUniform({ trained: { sigmas } }: SigmaRange, steps: number): number[] {
  const stride = Math.max(Math.floor(sigmas.length / steps), 1);
  const count = Math.ceil((sigmas.length - 1) / stride);
  return Array.from({ length: count }, (_, i) => sigmas[1 + (count - 1 - i) * stride]!);
}

/** ComfyUI's linear_quadratic_schedule (Movie Gen, arXiv 2410.13720, figure 10): half the steps fall by 2.5 % in all, the rest quadratically. */
function linearQuadratic({ highest }: SigmaRange, steps: number): number[] {
  if (steps === 1) return [highest];
  const threshold = 0.025;
  const linear = Math.floor(steps / 2);
  const quadratic = steps - linear;
  const difference = linear - threshold * steps;
  const square = difference / (linear * quadratic ** 2);
  const slope = threshold / linear - (2 * difference) / quadratic ** 2;
  const fallen = (i: number) => (i < linear ? (i * threshold) / linear : square * i ** 2 + slope * i + square * linear ** 2);
  return Array.from({ length: steps }, (_, i) => highest * (1 - fallen(i)));
}

/** Sabour et al., "Align Your Steps", arXiv 2404.14507: the optimised ten steps as its authors publish them. */
const alignYourSteps = {
  sd1: [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
  sdxl: [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113, 0.029],
} as const;

/** Other numbers of steps by linear interpolation of the logarithm. */
function logLinear(levels: readonly number[], steps: number): number[] {
  if (steps === levels.length) return [...levels];
  const logarithms = levels.map(Math.log);
  return linspace(0, levels.length - 1, steps).map(position => Math.exp(interpolate(position, logarithms)));
}
