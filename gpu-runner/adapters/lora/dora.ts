/** Weight-decomposed low-rank adaptation (Liu et al. 2024): the changed weight has the trained magnitude, row by row or column by column. */
import type { Delta } from "./algorithms.ts";

/** What a weight other than 1 means: peft rescales within the norm, A1111 and ComfyUI go part of the way from the old weight to the new. */
export type DoraReading = "peft" | "interpolate";

export interface Magnitude {
  /** One per output row, or one per input column (older LyCORIS). */
  axis: "out" | "in";
  data: Float32Array;
}

export interface WeightShape {
  out: number;
  inputs: number;
  spatial: number;
}

/** The changed weight at a strength. */
export function mergeDora(
  base: Float32Array,
  delta: Delta,
  { magnitude, shape, weight, reading }: { magnitude: Magnitude; shape: WeightShape; weight: number; reading: DoraReading },
): Float32Array {
  const change = delta(base);
  const inner = reading === "peft" ? weight : 1;
  const directed = Float64Array.from(base, (value, i) => value + inner * change[i]!);
  const group = groupOf(magnitude.axis, shape);
  const squares = new Float64Array(magnitude.data.length);
  directed.forEach((value, i) => {
    squares[group(i)]! += value * value;
  });
  const factors = squares.map((sum, i) => (sum > 0 ? magnitude.data[i]! / Math.sqrt(sum) : 0));
  const outer = reading === "peft" ? 1 : weight;
  return Float32Array.from(base, (value, i) => value + outer * (directed[i]! * factors[group(i)]! - value));
}

function groupOf(axis: "out" | "in", { inputs, spatial }: WeightShape): (index: number) => number {
  const row = inputs * spatial;
  return axis === "out" ? index => Math.floor(index / row) : index => Math.floor(index / spatial) % inputs;
}
