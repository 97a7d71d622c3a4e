/**
 * UniPC (Zhao et al., arXiv 2302.04867): a predictor and a corrector of any order that share the model's calls; as diffusers'
 * UniPCMultistepScheduler.
 */
import { combine } from "./combine.ts";
import type { SchedulerConfig } from "./config.ts";
import { noiseBySignal } from "./forward.ts";
import { solveLinear } from "./numeric.ts";
import { predictedNoise, predictedOriginal, type Signal, signalAt } from "./parameterization.ts";
import { solverSchedule } from "./schedule.ts";
import { stepSampler } from "./step-sampler.ts";
import { thresholdSample } from "./threshold.ts";

export const unipc = stepSampler({
  schedule: (config, steps) => solverSchedule({ ...config, lambda_min_clipped: null }, steps, { namedRepeatsLast: true }),
  addNoise: noiseBySignal,

  start(config, { timesteps, sigmas }, { batch, begin }) {
    const predictions: Float32Array[] = [];
    let last: { x: Float32Array; order: number } | null = null;
    return ({ index, x: predicted, output }) => {
      const { original, prediction } = predictionsOf(config, output, predicted, signalAt(sigmas[index]!), batch);
      const corrects = last !== null && !config.disable_corrector.includes(index - 1);
      const x = corrects ? correct(config, sigmas, index, last!, predictions, prediction) : predicted;
      predictions.unshift(prediction);
      predictions.length = Math.min(predictions.length, config.solver_order);
      const left = config.lower_order_final ? timesteps.length - index : config.solver_order;
      // Towards zero noise the step is infinite, and only order 1 has a limit.
      const order = sigmas[index + 1] === 0 ? 1 : Math.min(config.solver_order, left, index - begin + 1);
      last = { x, order };
      return { sample: predict(config, sigmas, index, x, predictions, order), original };
    };
  },
});

/** Predicted x0, and what the solver extrapolates: x0 itself or epsilon. */
function predictionsOf(config: SchedulerConfig, output: Float32Array, x: Float32Array, now: Signal, batch: number) {
  const predicted = predictedOriginal(config.prediction_type, output, x, now);
  if (!config.predict_x0) return { original: predicted, prediction: predictedNoise(config.prediction_type, output, x, now) };
  const original = config.thresholding ? thresholdSample(predicted, batch, config) : predicted;
  return { original, prediction: original };
}

/** From the level at `index` to the next, with the predictions at `index`, `index - 1`, … */
function predict(
  config: SchedulerConfig,
  sigmas: Float32Array,
  index: number,
  x: Float32Array,
  predictions: readonly Float32Array[],
  order: number,
): Float32Array {
  const step = unifiedStep(config, sigmas, index, order);
  const { ratios, matrix, vector } = step;
  const known = ratios.slice(0, -1);
  const weights =
    order === 2
      ? [0.5]
      : solveLinear(
          matrix.slice(0, -1).map(row => row.slice(0, -1)),
          vector.slice(0, -1),
        );
  const differences = known.map((ratio, i) => combine([1 / ratio, predictions[i + 1]!], [-1 / ratio, predictions[0]!]));
  return combine(
    [step.x, x],
    [step.d0, predictions[0]!],
    ...differences.map((difference, i) => [step.residual * weights[i]!, difference] as const),
  );
}

/** Takes the step to `index` again, now that the model has been asked there; `predictions` are those before, newest first. */
function correct(
  config: SchedulerConfig,
  sigmas: Float32Array,
  index: number,
  last: { x: Float32Array; order: number },
  predictions: readonly Float32Array[],
  prediction: Float32Array,
): Float32Array {
  const step = unifiedStep(config, sigmas, index - 1, last.order);
  const weights = last.order === 1 ? [0.5] : solveLinear(step.matrix, step.vector);
  const others = [...predictions.slice(1, last.order), prediction];
  const differences = others.map((other, i) => combine([1 / step.ratios[i]!, other], [-1 / step.ratios[i]!, predictions[0]!]));
  return combine(
    [step.x, last.x],
    [step.d0, predictions[0]!],
    ...differences.map((difference, i) => [step.residual * weights[i]!, difference] as const),
  );
}

/** Coefficients of x, of the newest prediction and of the weighted differences; and the system (their equation 11) that the weights solve. */
function unifiedStep(config: SchedulerConfig, sigmas: Float32Array, index: number, order: number) {
  const lambda = (position: number) => -Math.log(sigmas[position]!);
  const [s, t] = [signalAt(sigmas[index]!), signalAt(sigmas[index + 1]!)];
  const h = lambda(index + 1) - lambda(index);
  const signed = config.predict_x0 ? -h : h;
  const phi1 = Math.expm1(signed);
  const scale = config.unipc_solver === "bh1" ? signed : phi1;
  const ratios = Array.from({ length: order }, (_, i) => (i === order - 1 ? 1 : (lambda(index - 1 - i) - lambda(index)) / h));
  const vector: number[] = [];
  let phi = phi1 / signed - 1;
  let factorial = 1;
  for (let i = 1; i <= order; i++) {
    vector.push((phi * factorial) / scale);
    factorial *= i + 1;
    phi = phi / signed - 1 / factorial;
  }
  return {
    x: config.predict_x0 ? t.sigma / s.sigma : t.alpha / s.alpha,
    d0: -(config.predict_x0 ? t.alpha : t.sigma) * phi1,
    residual: -(config.predict_x0 ? t.alpha : t.sigma) * scale,
    ratios,
    matrix: vector.map((_, power) => ratios.map(ratio => ratio ** power)),
    vector,
  };
}
