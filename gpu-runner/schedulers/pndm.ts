/**
 * PNDM (Liu et al., arXiv 2202.09778): linear multistep on epsilon, begun by Runge-Kutta steps (or, with `skip_prk_steps`, by one step of
 * Heun's kind, which is called PLMS); as diffusers' PNDMScheduler.
 */
import { adamsBashforth } from "./adams-bashforth.ts";
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { noiseByAlphaBar } from "./forward.ts";
import { predictedNoise, predictedOriginal, signalOf } from "./parameterization.ts";
import { alphaBarSchedule, ddimTimesteps, type Schedule } from "./schedule.ts";
import { type Call, stepSampler } from "./step-sampler.ts";

export const pndm = stepSampler({
  schedule: pndmSchedule,
  addNoise: noiseByAlphaBar,

  start(config, schedule, { begin }) {
    requireKnownPrediction(config);
    const { timesteps, alphasCumprod } = schedule;
    const rungeKuttaCalls = config.skip_prk_steps ? 0 : 12;
    if (rungeKuttaCalls > 0 && begin > 0)
      throw new RangeError("PNDM with its Runge-Kutta steps cannot start in the middle: use skip_prk_steps");
    const steps = config.skip_prk_steps ? Math.max(timesteps.length - 1, 1) : timesteps.length - 9;
    const stride = Math.floor(config.num_train_timesteps / steps);
    const transfer = transferFunction(config, alphasCumprod);
    const history: Float32Array[] = [];
    const rungeKutta = rungeKuttaUpdate(schedule, stride, transfer, history);
    const linear = linearMultistepUpdate(stride, transfer, history, rungeKuttaCalls > 0);
    return call => {
      const now = signalOf(alphasCumprod[call.timestep]!);
      const original = predictedOriginal(config.prediction_type, call.output, call.x, now);
      const counter = call.index - begin;
      return { sample: counter < rungeKuttaCalls ? rungeKutta(call, counter) : linear(call, counter), original };
    };
  },
});

function requireKnownPrediction({ prediction_type }: SchedulerConfig): void {
  if (prediction_type !== "sample") return;
  throw new RangeError('prediction_type: expected "epsilon" or "v_prediction", which PNDM has formulas for, got "sample"');
}

/** Runge-Kutta asks four times in each of the first three steps, PLMS twice at the second timestep. */
function pndmSchedule(config: SchedulerConfig, steps: number): Schedule {
  const spaced = ddimTimesteps(config, steps);
  if (config.skip_prk_steps) return alphaBarSchedule(config, steps === 1 ? spaced : [...spaced.slice(0, 2), ...spaced.slice(1)]);
  if (steps < 4)
    throw new RangeError(`steps: expected at least 4 for PNDM with its Runge-Kutta steps (skip_prk_steps: false), got ${steps}`);
  const half = Math.floor(Math.floor(config.num_train_timesteps / steps) / 2);
  const rungeKutta = spaced.slice(0, 3).flatMap((timestep, i) => {
    const [middle, next] = [spaced[i + 1]! + half, spaced[i + 1]!];
    return [timestep, middle, middle, next];
  });
  return alphaBarSchedule(config, [...rungeKutta, ...spaced.slice(3)]);
}

type Transfer = (x: Float32Array, output: Float32Array, from: number, to: number) => Float32Array;

/** Equation 11: from one timestep to another along a direction. */
function transferFunction(config: SchedulerConfig, alphasCumprod: Float32Array): Transfer {
  const finalAlphaBar = config.set_alpha_to_one ? 1 : alphasCumprod[0]!;
  return (x, output, from, to) => {
    const alphaBar = alphasCumprod[from]!;
    const nextAlphaBar = to >= 0 ? alphasCumprod[to]! : finalAlphaBar;
    const epsilon = predictedNoise(config.prediction_type, output, x, signalOf(alphaBar));
    const denominator = alphaBar * Math.sqrt(1 - nextAlphaBar) + Math.sqrt(alphaBar * (1 - alphaBar) * nextAlphaBar);
    return combine([Math.sqrt(nextAlphaBar / alphaBar), x], [-(nextAlphaBar - alphaBar) / denominator, epsilon]);
  };
}

type CountedUpdate = (call: Call, counter: number) => Float32Array;

/** The classic method of order 4, from the same latents each time. */
function rungeKuttaUpdate({ timesteps }: Schedule, stride: number, transfer: Transfer, history: Float32Array[]): CountedUpdate {
  let start: Float32Array = new Float32Array();
  let sum: Float32Array = new Float32Array();
  return ({ timestep, x, output, index }, counter) => {
    const stage = counter % 4;
    const from = timesteps[index - stage]!;
    const to = timestep - (stage % 2 === 0 ? Math.floor(stride / 2) : 0);
    if (stage === 0) {
      start = x;
      sum = combine([1 / 6, output]);
      history.push(output);
    } else {
      sum = combine([1, sum], [stage === 3 ? 1 / 6 : 1 / 3, output]);
    }
    return transfer(start, stage === 3 ? sum : output, from, to);
  };
}

function linearMultistepUpdate(stride: number, transfer: Transfer, history: Float32Array[], begun: boolean): CountedUpdate {
  let start: Float32Array = new Float32Array();
  return ({ timestep, x, output }, counter) => {
    // PLMS's second call looks back from the first step's end and takes that step again with the mean of both.
    if (!begun && counter === 1) return transfer(start, combine([0.5, output], [0.5, history[0]!]), timestep + stride, timestep);
    history.push(output);
    if (counter === 0) start = x;
    return transfer(x, adamsBashforth(history), timestep, timestep - stride);
  };
}
