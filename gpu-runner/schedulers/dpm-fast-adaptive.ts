/**
 * DPM-Solver-fast and the adaptive DPM-Solver-23 (Lu et al., arXiv 2206.00927), as k-diffusion's sample_dpm_fast and sample_dpm_adaptive: steps in
 * t = -log sigma over all of training's levels, of order 1 to 3 by as many model calls.
 */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { ancestralLevels, noiseByLevel } from "./forward.ts";
import { type Denoise, denoiser, levelSampler } from "./level-sampler.ts";
import { timestepOf, trainedLevels } from "./noise-levels.ts";
import { linspace } from "./numeric.ts";
import type { Sampler } from "./sampler.ts";
import { checkSteps, type Schedule } from "./schedule.ts";
import { spanOf } from "./step-sampler.ts";

/** `steps` counts model calls: three a step, but for the last step or two. */
export const dpmFast = levelSampler({
  schedule(config, steps) {
    const count = Math.floor(steps / 3) + 1;
    const orders = Array.from({ length: count }, (_, i) => (i < count - 1 ? 3 : steps % 3));
    if (steps % 3 === 0) orders.splice(-2, 2, 2, 1);
    return { ...logSpacedSchedule(config, steps, count), orders };
  },

  start(config, { sigmas, orders = [] }, { denoise, noise }) {
    return async (x, index) => {
      const start = await startAt(denoise, index, x, sigmas[index]!);
      const { end, up } = ancestralEnd(config, sigmas[index]!, sigmas[index + 1]!, sigmas.at(-1)!);
      const order = orders[index]!;
      const ended = order === 1 ? firstOrder(start, end) : order === 2 ? await secondOrder(start, end) : await thirdOrder(start, end);
      return { sample: up > 0 ? combine([1, ended], [up * config.s_noise, noise()]) : ended, original: start.original };
    };
  },
});

/** Steps as long as the difference of orders 2 and 3 allows; its schedule only says where it begins and ends, and how far it has come. */
export const dpmAdaptive: Sampler = {
  order: 1,
  schedule: (config, steps) => logSpacedSchedule(config, steps, steps),
  addNoise: noiseByLevel,

  async sample(config, plan, run) {
    const { begin, end } = spanOf(plan, run);
    // Its steps' lengths follow from the latents, so items cannot share them, and no step ends at a position of the schedule.
    if (run.batch !== 1) throw new RangeError(`batch: expected 1 for an adaptive sampler, got ${run.batch}`);
    if (run.afterStep) throw new RangeError("an adaptive sampler cannot put an inpainted picture's outside back between its steps");
    const denoise = denoiser(config, plan, run);
    const [from, to] = [plan.sigmas[begin]!, plan.sigmas[end]!];
    const controller = stepController(config.eta > 0 ? 1.5 : 3);
    let [x, low, sigma] = [run.latents, run.latents, from];
    while (Math.log(sigma / to) > 1e-5) {
      const next = Math.max(to, sigma * Math.exp(-controller.length()));
      const { end: down, up } = ancestralEnd(config, sigma, next, to);
      const start = await startAt(denoise, begin, x, sigma);
      const middle = await epsilonAhead(start, down, 1 / 3);
      const lower = secondOrderAlong(start, down, middle, 1 / 3);
      const higher = await thirdOrder(start, down, middle);
      if (!controller.accepts(relativeError(lower, higher, low))) continue;
      low = lower;
      x = up > 0 ? combine([1, higher], [up * config.s_noise, run.noise()]) : higher;
      sigma = next;
      const done = Math.log(from / sigma) / Math.log(from / to);
      await run.onStep?.({ step: Math.max(Math.floor(done * (end - begin)), 1), steps: end - begin, sample: x, original: start.original });
    }
    return x;
  },
};

/** `count` steps of equal length in log sigma, from training's highest level to its lowest. */
function logSpacedSchedule(config: SchedulerConfig, steps: number, count: number): Schedule {
  checkSteps(config, steps);
  const trained = trainedLevels(config);
  const levels = linspace(Math.log(trained.sigmas.at(-1)!), Math.log(trained.sigmas[0]!), count + 1).map(Math.exp);
  return {
    timesteps: levels.slice(0, -1).map(sigma => Math.fround(timestepOf(sigma, trained))),
    sigmas: Float32Array.from(levels),
    alphasCumprod: trained.alphasCumprod,
    initNoiseSigma: Math.fround(levels[0]!),
  };
}

/** Where a step ends before noise is added (never below the run's last level), and the noise that lifts it to `next`. */
function ancestralEnd({ eta }: SchedulerConfig, sigma: number, next: number, last: number): { end: number; up: number } {
  if (eta === 0) return { end: next, up: 0 };
  const end = Math.max(ancestralLevels(sigma, next, eta).down, last);
  return { end, up: Math.sqrt(Math.max(next ** 2 - end ** 2, 0)) };
}

interface Start {
  x: Float32Array;
  sigma: number;
  original: Float32Array;
  epsilon: Float32Array;
  epsilonAt(x: Float32Array, sigma: number): Promise<Float32Array>;
}

async function startAt(denoise: Denoise, call: number, x: Float32Array, sigma: number): Promise<Start> {
  const read = async (point: Float32Array, level: number) => {
    const { guided } = await denoise(point, level, call);
    return { original: guided, epsilon: combine([1 / level, point], [-1 / level, guided]) };
  };
  return { x, sigma, ...(await read(x, sigma)), epsilonAt: async (point, level) => (await read(point, level)).epsilon };
}

function firstOrder({ x, sigma, epsilon }: Start, next: number): Float32Array {
  return combine([1, x], [-next * Math.expm1(Math.log(sigma / next)), epsilon]);
}

/** Epsilon at the share `r` of the step, reached by a step of order 1. */
function epsilonAhead(start: Start, next: number, r: number): Promise<Float32Array> {
  const level = start.sigma * (next / start.sigma) ** r;
  return start.epsilonAt(firstOrder(start, level), level);
}

async function secondOrder(start: Start, next: number): Promise<Float32Array> {
  return secondOrderAlong(start, next, await epsilonAhead(start, next, 1 / 2), 1 / 2);
}

function secondOrderAlong({ x, sigma, epsilon }: Start, next: number, ahead: Float32Array, r: number): Float32Array {
  const whole = next * Math.expm1(Math.log(sigma / next));
  return combine([1, x], [-whole + whole / (2 * r), epsilon], [-whole / (2 * r), ahead]);
}

/** @param ahead epsilon at a third of the step, where it is known */
async function thirdOrder(start: Start, next: number, ahead?: Float32Array): Promise<Float32Array> {
  const first = ahead ?? (await epsilonAhead(start, next, 1 / 3));
  const level = start.sigma * (next / start.sigma) ** (2 / 3);
  // A correction of slope (first - epsilon) / r1, then of (second - epsilon) / r2.
  const second = await start.epsilonAt(corrected(start, level, first, 2), level);
  return corrected(start, next, second, 3 / 2);
}

function corrected({ x, sigma, epsilon }: Start, next: number, ahead: Float32Array, factor: number): Float32Array {
  const h = Math.log(sigma / next);
  const slope = next * factor * (Math.expm1(h) / h - 1);
  return combine([1, x], [-next * Math.expm1(h) + slope, epsilon], [-slope, ahead]);
}

/** Root mean square of the difference, over what is tolerated of each value. */
function relativeError(low: Float32Array, high: Float32Array, before: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < low.length; i++) {
    const tolerated = Math.max(0.0078, 0.05 * Math.max(Math.abs(low[i]!), Math.abs(before[i]!)));
    sum += ((low[i]! - high[i]!) / tolerated) ** 2;
  }
  return Math.sqrt(sum / low.length);
}

/** k-diffusion's PID controller with its defaults (only the integral part): the next length in log sigma, from the error of the last. */
function stepController(order: number) {
  let length = 0.05;
  return {
    length: () => length,
    accepts(error: number): boolean {
      const factor = 1 + Math.atan((1 / (error + 1e-8)) ** (1 / order) - 1);
      length *= factor;
      return factor >= 0.81;
    },
  };
}
