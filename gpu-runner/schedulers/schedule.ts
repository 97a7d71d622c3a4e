/** Which timesteps a run visits, and at which noise levels: spacings and sigma schedules after diffusers' `set_timesteps`. */
import { cumulativeAlphas } from "./betas.ts";
import type { SchedulerConfig, SigmaScheduleName } from "./config.ts";
import { levelOf, type TrainedLevels, timestepOf, trainedLevels } from "./noise-levels.ts";
import { countDown, interpolate, linspace, roundHalfEven } from "./numeric.ts";
import { sigmaScheduleFunctions } from "./sigma-schedules.ts";

export interface Schedule {
  /** What the model is told at each call; fractional for some schedules. Falling, but for samplers that run towards noise. */
  timesteps: readonly number[];
  /** Noise level sigma = sqrt(1 - alpha-bar) / sqrt(alpha-bar) at each call, and after the last; as the diffusers class holds them. */
  sigmas: Float32Array;
  /** alpha-bar of every training timestep; empty for models that have none. */
  alphasCumprod: Float32Array;
  /** Deviation of the first latents: unit noise is multiplied by it. */
  initNoiseSigma: number;
  /** Order of each step, for a sampler whose steps differ. */
  orders?: readonly number[];
}

/** @throws RangeError where there are more steps than training timesteps */
export function checkSteps(config: SchedulerConfig, steps: number): void {
  if (Number.isInteger(steps) && steps >= 1 && steps <= config.num_train_timesteps) return;
  throw new RangeError(`steps: expected an integer of 1 to ${config.num_train_timesteps} (the model's training timesteps), got ${steps}`);
}

/** Whole timesteps for DDIM and its like, which need no noise levels of their own. */
export function ddimTimesteps(config: SchedulerConfig, steps: number): number[] {
  checkSteps(config, steps);
  return spacedTimesteps(config, steps).map(roundHalfEven);
}

/** A schedule of whole timesteps whose noise levels are alpha-bar's. @throws RangeError for a timestep that the model does not know */
export function alphaBarSchedule(config: SchedulerConfig, timesteps: readonly number[]): Schedule {
  const alphasCumprod = cumulativeAlphas(config);
  const [least, greatest] = [Math.min(...timesteps), Math.max(...timesteps)];
  if (least < 0 || greatest >= alphasCumprod.length) {
    throw new RangeError(
      `steps_offset ${config.steps_offset}: the timesteps are ${least} to ${greatest}, the model's 0 to ${alphasCumprod.length - 1}`,
    );
  }
  const sigmas = Float32Array.from([...timesteps.map(t => Math.sqrt(1 / alphasCumprod[t]! - 1)), 0]);
  return { timesteps, sigmas, alphasCumprod, initNoiseSigma: 1 };
}

/** The levels of samplers that hold latents as x0 + level * epsilon. */
export interface LevelSchedule {
  timesteps: number[];
  /** One a timestep, without the last (`log_linear`: with it). */
  levels: number[];
  trained: TrainedLevels;
  initNoiseSigma: number;
}

/** Levels are interpolated at (possibly fractional) timesteps, then replaced by a named schedule. */
export function levelSchedule(config: SchedulerConfig, steps: number): LevelSchedule {
  checkSteps(config, steps);
  const trained = trainedLevels(config);
  const spaced = spacedTimesteps(config, steps).map(Math.fround);
  const visited = visitedLevels(config, spaced, trained);
  const named = namedLevels(config, config.sigma_max ?? visited[0]!, config.sigma_min ?? visited.at(-1)!, steps, trained);
  const levels = named ?? visited;
  const highest = Math.max(...levels);
  return {
    timesteps: named?.map(sigma => Math.fround(timestepOf(sigma, trained))) ?? spaced,
    levels,
    trained,
    initNoiseSigma: config.timestep_spacing === "leading" ? Math.sqrt(highest ** 2 + 1) : highest,
  };
}

function visitedLevels(config: SchedulerConfig, spaced: readonly number[], { sigmas, logSigmas }: TrainedLevels): number[] {
  if (config.interpolation_type === "linear") return spaced.map(timestep => interpolate(timestep, sigmas));
  // Evenly in log sigma whatever the timesteps are, with one level more than there are steps: the run ends at the least one.
  return linspace(logSigmas.at(-1)!, logSigmas[0]!, spaced.length + 1).map(Math.exp);
}

/** Schedule for Euler samplers. */
export function eulerSchedule(config: SchedulerConfig, steps: number): Schedule {
  const { timesteps, levels, trained, initNoiseSigma } = levelSchedule(config, steps);
  const sigmas = withFinalSigma(config, levels, trained.alphasCumprod);
  const continuous = config.timestep_type === "continuous" && config.prediction_type === "v_prediction";
  return {
    timesteps: continuous ? levels.map(sigma => Math.fround(0.25 * Math.log(Math.fround(sigma)))) : timesteps,
    sigmas,
    alphasCumprod: trained.alphasCumprod,
    initNoiseSigma,
  };
}

/** What the solvers in half log-SNR differ in. */
interface SolverScheduleRules {
  /** `final_sigmas_type` is not looked at: the run ends at the least level of training, a named schedule at its last level again. */
  repeatsLast?: boolean;
  /** With `final_sigmas_type` sigma_min a named schedule ends at its last level again, not at the least of training. */
  namedRepeatsLast?: boolean;
  /** Timesteps of karras levels are truncated, not rounded, for models of the cosine schedule. */
  truncatesCosine?: boolean;
}

/** Schedule for solvers in half log-SNR: whole timesteps; a named schedule spans all noise levels of training. */
export function solverSchedule(config: SchedulerConfig, steps: number, rules: SolverScheduleRules = {}): Schedule {
  checkSteps(config, steps);
  const trained = trainedLevels(config);
  const { sigmas, alphasCumprod } = trained;
  const named = namedLevels(config, config.sigma_max ?? sigmas.at(-1)!, config.sigma_min ?? sigmas[0]!, steps, trained);
  const spaced = solverTimesteps(config, steps, alphasCumprod);
  const levels = named ?? spaced.map(timestep => interpolate(timestep, sigmas));
  return {
    timesteps: named?.map(sigma => solverTimestep(config, sigma, trained, rules)) ?? spaced,
    sigmas:
      rules.repeatsLast || (rules.namedRepeatsLast && named && config.final_sigmas_type === "sigma_min")
        ? Float32Array.from([...levels, named ? levels.at(-1)! : levelOf(alphasCumprod[0]!)])
        : withFinalSigma(config, levels, alphasCumprod),
    alphasCumprod,
    initNoiseSigma: 1,
  };
}

/** diffusers rounds the timesteps of some schedules and truncates those of others; schedules that it lacks keep their fractions. */
export function solverTimestep(
  config: SchedulerConfig,
  sigma: number,
  trained: TrainedLevels,
  { truncatesCosine = false }: SolverScheduleRules = {},
): number {
  const timestep = timestepOf(sigma, trained);
  const name = scheduleName(config);
  const truncates = truncatesCosine && config.beta_schedule === "squaredcos_cap_v2";
  if (name === "karras" || name === "lu") return truncates ? Math.trunc(timestep) : roundHalfEven(timestep);
  return name === "exponential" || name === "beta" ? Math.trunc(timestep) : timestep;
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
function solverTimesteps(config: SchedulerConfig, steps: number, alphasCumprod: Float32Array): number[] {
  const last = noisiestTimestep(config, alphasCumprod) + 1;
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

/** The last timestep whose half log-SNR is not below `lambda_min_clipped`. */
export function noisiestTimestep(config: SchedulerConfig, alphasCumprod: Float32Array): number {
  const clip = config.lambda_min_clipped ?? Number.NEGATIVE_INFINITY;
  return alphasCumprod.findLastIndex(alphaBar => Math.log(alphaBar / (1 - alphaBar)) / 2 >= clip);
}

/** The named schedule that the settings ask for; null for the plain one. */
export function scheduleName(config: SchedulerConfig): SigmaScheduleName | null {
  if (config.use_karras_sigmas) return "karras";
  if (config.use_exponential_sigmas) return "exponential";
  if (config.use_beta_sigmas) return "beta";
  if (config.use_lu_lambdas) return "lu";
  return config.named_schedule;
}

/** `steps` noise levels from `highest` to `lowest` by the schedule that the settings name; null for the plain one. */
export function namedLevels(
  config: SchedulerConfig,
  highest: number,
  lowest: number,
  steps: number,
  trained: TrainedLevels,
): number[] | null {
  const name = scheduleName(config);
  if (name === null) return null;
  // Schedules that diffusers lacks are those of A1111 and ComfyUI, which always span all of training.
  const whole = name === config.named_schedule;
  const range = whole ? { highest: trained.sigmas.at(-1)!, lowest: trained.sigmas[0]! } : { highest, lowest };
  return sigmaScheduleFunctions[name]({ ...range, rho: config.rho, trained, alignFor: config.align_your_steps }, steps);
}

function withFinalSigma(config: SchedulerConfig, levels: readonly number[], alphasCumprod: Float32Array): Float32Array {
  return Float32Array.from([...levels, config.final_sigmas_type === "sigma_min" ? levelOf(alphasCumprod[0]!) : 0]);
}
