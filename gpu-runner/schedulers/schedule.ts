/** Which timesteps a run visits, and at which noise levels: spacings and sigma schedules after diffusers' `set_timesteps`. */
import { betaQuantile } from "./beta-distribution.ts";
import { cumulativeAlphas } from "./betas.ts";
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { countDown, interpolate, linspace, roundHalfEven } from "./numeric.ts";
import { signalAt, signalOf } from "./parameterization.ts";

export interface Schedule {
  /** What the model is told at each step, falling; fractional for some schedules. */
  timesteps: readonly number[];
  /** Noise level sigma = sqrt(1 - alpha-bar) / sqrt(alpha-bar) at each step, and the level at the end: timesteps.length + 1 values. */
  sigmas: Float32Array;
  /** alpha-bar of every training timestep. */
  alphasCumprod: Float32Array;
  /** Deviation of the first latents: unit noise is multiplied by it. */
  initNoiseSigma: number;
}

/** @throws RangeError where there are more steps than training timesteps */
function checkSteps(config: SchedulerConfig, steps: number): void {
  if (Number.isInteger(steps) && steps >= 1 && steps <= config.num_train_timesteps) return;
  throw new RangeError(`steps: expected an integer of 1 to ${config.num_train_timesteps} (the model's training timesteps), got ${steps}`);
}

/** Timesteps for DDIM, which needs no noise levels of its own. */
export function ddimTimesteps(config: SchedulerConfig, steps: number): number[] {
  checkSteps(config, steps);
  return spacedTimesteps(config, steps).map(roundHalfEven);
}

/** A schedule of whole timesteps whose noise levels are alpha-bar's. @throws RangeError for a timestep that the model does not know */
export function alphaBarSchedule(config: SchedulerConfig, timesteps: readonly number[]): Schedule {
  const alphasCumprod = cumulativeAlphas(config);
  if (timesteps[0]! >= alphasCumprod.length) {
    throw new RangeError(
      `steps_offset ${config.steps_offset}: the first of ${timesteps.length} timesteps is ${timesteps[0]}, past the model's last, ${alphasCumprod.length - 1}`,
    );
  }
  const sigmas = Float32Array.from([...timesteps.map(t => Math.sqrt(1 / alphasCumprod[t]! - 1)), 0]);
  return { timesteps, sigmas, alphasCumprod, initNoiseSigma: 1 };
}

/** x = alpha x0 + sigma epsilon at a whole timestep. */
export function noiseByAlphaBar({ timesteps, alphasCumprod }: Schedule, original: Float32Array, noise: Float32Array, position: number) {
  const { alpha, sigma } = signalOf(alphasCumprod[timesteps[position]!]!);
  return combine([alpha, original], [sigma, noise]);
}

/** x = alpha x0 + sigma epsilon, where sigma / alpha is the schedule's noise level. */
export function noiseBySignal({ sigmas }: Schedule, original: Float32Array, noise: Float32Array, position: number): Float32Array {
  const { alpha, sigma } = signalAt(sigmas[position]!);
  return combine([alpha, original], [sigma, noise]);
}

/** x = x0 + level * epsilon. */
export function noiseByLevel({ sigmas }: Schedule, original: Float32Array, noise: Float32Array, position: number): Float32Array {
  return combine([1, original], [sigmas[position]!, noise]);
}

/** Latents x0 + level * epsilon as the model wants them: with unit variance. */
export function scaleByLevel({ sigmas }: Schedule, x: Float32Array, position: number): Float32Array {
  return combine([signalAt(sigmas[position]!).alpha, x]);
}

/** Step down past the next level, then add the noise that lifts the latents to it (k-diffusion's get_ancestral_step). */
export function ancestralLevels(sigma: number, next: number, eta = 1): { down: number; up: number } {
  const up = Math.min(next, eta * Math.sqrt((next ** 2 * (sigma ** 2 - next ** 2)) / sigma ** 2));
  return { down: Math.sqrt(next ** 2 - up ** 2), up };
}

/** Schedule for Euler samplers: noise levels are interpolated at (possibly fractional) timesteps, then replaced by a named schedule. */
export function eulerSchedule(config: SchedulerConfig, steps: number): Schedule {
  checkSteps(config, steps);
  const { alphasCumprod, sigmas: trained, logSigmas } = trainedSigmas(config);
  const spaced = spacedTimesteps(config, steps).map(Math.fround);
  const visited = spaced.map(timestep => interpolate(timestep, trained));
  const named = namedSigmas(config, config.sigma_max ?? visited[0]!, config.sigma_min ?? visited.at(-1)!, steps);
  const sigmas = withFinalSigma(config, named ?? visited, alphasCumprod);
  const continuous = config.timestep_type === "continuous" && config.prediction_type === "v_prediction";
  const timesteps = named?.map(sigma => Math.fround(sigmaToTimestep(sigma, logSigmas))) ?? spaced;
  const highest = sigmas.reduce((a, b) => Math.max(a, b));
  return {
    timesteps: continuous ? Array.from(sigmas.subarray(0, steps), sigma => Math.fround(0.25 * Math.log(sigma))) : timesteps,
    sigmas,
    alphasCumprod,
    initNoiseSigma: config.timestep_spacing === "leading" ? Math.sqrt(highest ** 2 + 1) : highest,
  };
}

/** Schedule for DPM-Solver multistep: whole timesteps; a named schedule spans all noise levels of training. */
export function dpmSchedule(config: SchedulerConfig, steps: number): Schedule {
  checkSteps(config, steps);
  const { alphasCumprod, sigmas: trained, logSigmas } = trainedSigmas(config);
  const named = config.use_lu_lambdas
    ? linspace(logSigmas.at(-1)!, logSigmas[0]!, steps).map(Math.exp)
    : namedSigmas(config, trained.at(-1)!, trained[0]!, steps);
  const spaced = dpmSpacedTimesteps(config, steps, alphasCumprod);
  const rounds = (config.use_karras_sigmas || config.use_lu_lambdas) && config.beta_schedule !== "squaredcos_cap_v2";
  const toTimestep = (sigma: number) => (rounds ? roundHalfEven : Math.trunc)(sigmaToTimestep(sigma, logSigmas));
  const sigmas = named ?? spaced.map(timestep => interpolate(timestep, trained));
  return {
    timesteps: named?.map(toTimestep) ?? spaced,
    sigmas: withFinalSigma(config, sigmas, alphasCumprod),
    alphasCumprod,
    initNoiseSigma: 1,
  };
}

/** Lin et al., arXiv 2305.08891, table 2. */
function spacedTimesteps(config: SchedulerConfig, steps: number): number[] {
  const count = config.num_train_timesteps;
  switch (config.timestep_spacing) {
    case "linspace":
      return linspace(0, count - 1, steps).reverse();
    case "leading":
      return Array.from({ length: steps }, (_, i) => (steps - 1 - i) * Math.floor(count / steps) + config.steps_offset);
    case "trailing":
      return countDown(count, 0, count / steps).map(timestep => roundHalfEven(timestep) - 1);
  }
}

/** DPM-Solver's spacings leave out the last of steps + 1 points, and start below the noise level at which lambda is clipped. */
function dpmSpacedTimesteps(config: SchedulerConfig, steps: number, alphasCumprod: Float32Array): number[] {
  const clip = config.lambda_min_clipped ?? Number.NEGATIVE_INFINITY;
  const last = alphasCumprod.findLastIndex(alphaBar => Math.log(alphaBar / (1 - alphaBar)) / 2 >= clip) + 1;
  switch (config.timestep_spacing) {
    case "linspace":
      return linspace(0, last - 1, steps + 1)
        .map(roundHalfEven)
        .reverse()
        .slice(0, -1);
    case "leading":
      return Array.from({ length: steps }, (_, i) => (steps - i) * Math.floor(last / (steps + 1)) + config.steps_offset);
    case "trailing":
      return countDown(last, 0, config.num_train_timesteps / steps).map(timestep => roundHalfEven(timestep) - 1);
  }
}

/** Noise level of every training timestep, rising, and its logarithm. */
function trainedSigmas(config: SchedulerConfig) {
  const alphasCumprod = cumulativeAlphas(config);
  // Zero terminal SNR would be an infinite sigma; the smallest positive half-precision number stands in for alpha-bar.
  if (config.rescale_betas_zero_snr) alphasCumprod[alphasCumprod.length - 1] = 2 ** -24;
  const sigmas = alphasCumprod.map(sigmaOf);
  return { alphasCumprod, sigmas, logSigmas: sigmas.map(Math.log) };
}

function sigmaOf(alphaBar: number): number {
  return Math.sqrt(Math.fround(Math.fround(1 - alphaBar) / alphaBar));
}

/** `steps` noise levels from `highest` to `lowest` by the schedule that the flags name; null for the plain one. */
function namedSigmas(config: SchedulerConfig, highest: number, lowest: number, steps: number): number[] | null {
  if (config.use_karras_sigmas) return karrasSigmas(highest, lowest, steps);
  if (config.use_exponential_sigmas) return linspace(Math.log(highest), Math.log(lowest), steps).map(Math.exp);
  if (config.use_beta_sigmas) return betaSigmas(highest, lowest, steps);
  return null;
}

/** Karras et al., arXiv 2206.00364, equation 5, rho = 7. */
function karrasSigmas(highest: number, lowest: number, steps: number): number[] {
  const rho = 7;
  const [high, low] = [highest ** (1 / rho), lowest ** (1 / rho)];
  return linspace(0, 1, steps).map(ramp => (high + ramp * (low - high)) ** rho);
}

/** Noise levels at quantiles of Beta(0.6, 0.6): dense at both ends. */
function betaSigmas(highest: number, lowest: number, steps: number): number[] {
  return linspace(0, 1, steps).map(ramp => lowest + betaQuantile(1 - ramp, 0.6, 0.6) * (highest - lowest));
}

function withFinalSigma(config: SchedulerConfig, sigmas: readonly number[], alphasCumprod: Float32Array): Float32Array {
  return Float32Array.from([...sigmas, config.final_sigmas_type === "sigma_min" ? sigmaOf(alphasCumprod[0]!) : 0]);
}

/** The fractional training timestep of a noise level, by linear interpolation of the logarithm. */
function sigmaToTimestep(sigma: number, logSigmas: Float32Array): number {
  const logSigma = Math.log(Math.max(sigma, 1e-10));
  const below = logSigmas.findLastIndex(level => logSigma >= level);
  const low = Math.min(Math.max(below, 0), logSigmas.length - 2);
  const weight = (logSigmas[low]! - logSigma) / Math.fround(logSigmas[low]! - logSigmas[low + 1]!);
  const clamped = Math.min(Math.max(weight, 0), 1);
  return (1 - clamped) * low + clamped * (low + 1);
}
