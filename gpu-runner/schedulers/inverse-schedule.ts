/** Schedules that run from a picture towards noise. */
import type { SchedulerConfig } from "./config.ts";
import { levelOf, trainedLevels } from "./noise-levels.ts";
import { countDown, interpolate, linspace, roundHalfEven } from "./numeric.ts";
import { checkSteps, namedLevels, noisiestTimestep, type Schedule, solverTimestep } from "./schedule.ts";

/** As diffusers' DPMSolverMultistepInverseScheduler: rising levels; timesteps that rounding made equal count once, their levels stay. */
export function inverseSolverSchedule(config: SchedulerConfig, steps: number): Schedule {
  checkSteps(config, steps);
  const trained = trainedLevels(config);
  const { sigmas, alphasCumprod } = trained;
  const noisiest = noisiestTimestep(config, alphasCumprod);
  const named = namedLevels(config, sigmas[0]!, sigmas.at(-1)!, steps, trained);
  const spaced = risingTimesteps(config, steps, noisiest);
  const levels = named ?? spaced.map(timestep => interpolate(timestep, sigmas));
  return {
    timesteps: [...new Set(named?.map(sigma => solverTimestep(config, sigma, trained)) ?? spaced)],
    sigmas: Float32Array.from([...levels, named ? levels.at(-1)! : levelOf(alphasCumprod[noisiest]!)]),
    alphasCumprod,
    initNoiseSigma: 1,
  };
}

function risingTimesteps(config: SchedulerConfig, steps: number, noisiest: number): number[] {
  switch (config.timestep_spacing) {
    case "linspace":
      return linspace(0, noisiest, steps + 1)
        .map(roundHalfEven)
        .slice(0, -1);
    case "leading":
      return Array.from({ length: steps }, (_, i) => i * Math.floor((noisiest + 1) / (steps + 1)) + config.steps_offset);
    case "trailing":
      return countDown(noisiest + 1, 0, config.num_train_timesteps / steps)
        .map(timestep => roundHalfEven(timestep) - 1)
        .reverse();
  }
}
