/**
 * Dynamic thresholding (Saharia et al., arXiv 2205.11487): each item of the batch is clamped to [-s, s] and divided by s, where s is a
 * quantile of its absolute values, at least 1 and at most `sample_max_value`.
 */
import type { SchedulerConfig } from "./config.ts";
import { interpolate } from "./numeric.ts";

export function thresholdSample(sample: Float32Array, batch: number, config: SchedulerConfig): Float32Array {
  const size = sample.length / batch;
  const result = new Float32Array(sample.length);
  for (let start = 0; start < sample.length; start += size) {
    const item = sample.subarray(start, start + size);
    const sorted = item.map(Math.abs).sort();
    const quantile = interpolate(config.dynamic_thresholding_ratio * (size - 1), sorted);
    const limit = Math.min(Math.max(quantile, 1), config.sample_max_value);
    result.set(
      clampTo(item, limit).map(value => value / limit),
      start,
    );
  }
  return result;
}

/** Values limited to [-limit, limit]. */
export function clampTo(sample: Float32Array, limit: number): Float32Array {
  return sample.map(value => Math.min(Math.max(value, -limit), limit));
}

/** A predicted x0 brought into the range that the settings ask for. */
export function limitOriginal(original: Float32Array, batch: number, config: SchedulerConfig): Float32Array {
  if (config.thresholding) return thresholdSample(original, batch, config);
  return config.clip_sample ? clampTo(original, config.clip_sample_range) : original;
}
