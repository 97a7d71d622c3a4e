/**
 * DPM-Solver-2 in the form of Karras et al. (k-diffusion's sample_dpm_2 and sample_dpm_2_ancestral): the second call of a step is made at the
 * geometric mean of its levels. As diffusers' KDPM2DiscreteScheduler and KDPM2AncestralDiscreteScheduler.
 */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { ancestralLevels, noiseByLevel, scaleTo } from "./forward.ts";
import { timestepOf } from "./noise-levels.ts";
import { roundHalfEven } from "./numeric.ts";
import { originalAtLevel } from "./parameterization.ts";
import { levelSchedule, type Schedule, scheduleName } from "./schedule.ts";
import { stepSampler, type UpdateContext } from "./step-sampler.ts";

export const kdpm2 = kdpm2Sampler(false);
export const kdpm2Ancestral = kdpm2Sampler(true);

function kdpm2Sampler(ancestral: boolean) {
  return stepSampler({
    order: 2,
    addNoise: noiseByLevel,
    schedule: (config, steps) => kdpm2Schedule(config, steps, ancestral),
    scaleInput: ({ sigmas }, x, index) => scaleTo(index % 2 === 0 ? sigmas[index]! : stepLevels(sigmas, index - 1, ancestral).middle, x),
    start: (config, schedule, context) => kdpm2Update(config, schedule, context, ancestral),
  });
}

interface StepLevels {
  sigma: number;
  middle: number;
  /** Where the step ends before noise is added, and how much noise that is. */
  down: number;
  up: number;
}

/** Levels of the step whose first call is at `index`. */
function stepLevels(sigmas: Float32Array, index: number, ancestral: boolean): StepLevels {
  const [sigma, next] = [sigmas[index]!, sigmas[index + 1]!];
  const { down, up } = ancestral ? ancestralLevels(sigma, next) : { down: next, up: 0 };
  return { sigma, middle: Math.sqrt(sigma * down), down, up };
}

/** Calls at the level of a step and at its middle, in turn; every level but the first stands twice in `sigmas`, as in diffusers. */
function kdpm2Schedule(config: SchedulerConfig, steps: number, ancestral: boolean): Schedule {
  const { timesteps, levels, trained, initNoiseSigma } = levelSchedule(config, steps);
  const whole = timesteps.map(timestep => (scheduleName(config) === "karras" ? roundHalfEven(timestep) : timestep));
  const [first, ...rest] = [...levels, 0];
  const sigmas = Float32Array.from([first!, ...rest.flatMap(level => [level, level]), 0]);
  const middles = whole.slice(1).map((_, i) => timestepOf(stepLevels(sigmas, 2 * i, ancestral).middle, trained));
  return {
    timesteps: [whole[0]!, ...whole.slice(1).flatMap((timestep, i) => [Math.fround(middles[i]!), timestep])],
    sigmas,
    alphasCumprod: trained.alphasCumprod,
    initNoiseSigma,
  };
}

function kdpm2Update(config: SchedulerConfig, { sigmas }: Schedule, { noise }: UpdateContext, ancestral: boolean) {
  let start: Float32Array | null = null;
  return ({ index, x, output }: { index: number; x: Float32Array; output: Float32Array }) => {
    const { sigma, middle, down, up } = stepLevels(sigmas, start === null ? index : index - 1, ancestral);
    const level = start === null ? sigma : middle;
    const original = originalAtLevel(config.prediction_type, output, x, level);
    const derivative = combine([1 / level, x], [-1 / level, original]);
    if (start === null) {
      // The last step ends at zero, and so does its middle: it has no second call.
      if (down > 0) start = x;
      return { sample: combine([1, x], [middle - sigma, derivative]), original };
    }
    const ended = combine([1, start], [down - sigma, derivative]);
    start = null;
    return { sample: ancestral ? combine([1, ended], [up, noise()]) : ended, original };
  };
}
