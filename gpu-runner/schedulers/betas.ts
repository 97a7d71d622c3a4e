/**
 * Noise schedules of training: beta_t to alpha-bar_t. Values are rounded to float32 where diffusers holds float32 tensors, because
 * sigma = sqrt((1 - alpha-bar) / alpha-bar) amplifies the last bit.
 */
import type { SchedulerConfig } from "./config.ts";

const f32 = Math.fround;

/** Cumulative products of 1 - beta, one per training timestep; exactly 0 at the last with `rescale_betas_zero_snr`. */
export function cumulativeAlphas(config: SchedulerConfig): Float32Array {
  const betas = trainingBetas(config);
  return cumulativeProduct(config.rescale_betas_zero_snr ? rescaleToZeroTerminalSnr(betas) : betas);
}

function trainingBetas(config: SchedulerConfig): Float32Array {
  const { beta_start: start, beta_end: end, num_train_timesteps: count } = config;
  if (config.trained_betas !== null) return Float32Array.from(config.trained_betas);
  switch (config.beta_schedule) {
    case "linear":
      return linspaceF32(start, end, count);
    case "scaled_linear":
      return linspaceF32(Math.sqrt(start), Math.sqrt(end), count).map(root => root * root);
    case "squaredcos_cap_v2":
      return betasOf(cosineAlphaBar, count);
    case "exp":
      return betasOf(time => Math.exp(-12 * time), count);
    case "laplace":
      return betasOf(laplaceAlphaBar, count);
    case "sigmoid":
      return linspaceF32(-6, 6, count).map(x => (1 / (1 + Math.exp(-x))) * (end - start) + start);
  }
}

/** The betas whose cumulative product follows alpha-bar over time 0..1. */
function betasOf(alphaBar: (time: number) => number, count: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => Math.min(1 - alphaBar((i + 1) / count) / alphaBar(i / count), 0.999));
}

/** Hang et al., arXiv 2407.03297, with scale 1/2 around log-SNR 0. */
function laplaceAlphaBar(time: number): number {
  const snr = Math.exp(-0.5 * (time > 0.5 ? -1 : 1) * Math.log(1 - 2 * Math.abs(0.5 - time) + 1e-6));
  return Math.sqrt(snr / (1 + snr));
}

/** Nichol and Dhariwal, arXiv 2102.09672, equation 17. */
function cosineAlphaBar(time: number): number {
  return Math.cos((((time + 0.008) / 1.008) * Math.PI) / 2) ** 2;
}

/** torch.linspace in float32: the second half counts back from the end. */
function linspaceF32(start: number, end: number, count: number): Float32Array {
  const step = f32((f32(end) - f32(start)) / (count - 1));
  return Float32Array.from({ length: count }, (_, i) => (i < count / 2 ? f32(start) + step * i : f32(end) - step * (count - 1 - i)));
}

/** Products are accumulated in double and each is rounded, as torch.cumprod does. */
function cumulativeProduct(betas: Float32Array): Float32Array {
  let product = 1;
  return betas.map(beta => (product *= f32(1 - beta)));
}

/** Lin et al., arXiv 2305.08891, algorithm 1: shift and scale sqrt(alpha-bar) so that the last is 0 and the first stays. */
function rescaleToZeroTerminalSnr(betas: Float32Array): Float32Array {
  const roots = cumulativeProduct(betas).map(Math.sqrt);
  const [first, last] = [roots[0]!, roots.at(-1)!];
  const scale = f32(first / f32(first - last));
  const alphaBars = roots.map(root => f32(f32(root - last) * scale) ** 2);
  return alphaBars.map((alphaBar, i) => 1 - (i === 0 ? alphaBar : f32(alphaBar / alphaBars[i - 1]!)));
}
