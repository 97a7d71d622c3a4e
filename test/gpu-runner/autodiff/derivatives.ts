/** Derivatives by differences, and what it takes to compare them. */
import { expect } from "vitest";
import { cotangentName } from "../../../gpu-runner/autodiff/differentiate.ts";
import type { TensorF32 } from "../../../gpu-runner/components.ts";
import type { Graph } from "../../../gpu-runner/graph/ir.ts";
import { type Feeds64, interpret, type Tensor64 } from "../support/interpreter.ts";

/** Numbers of about unit size that fp32 holds exactly, the same for the same seed; off the kinks by more than any step taken here. */
export function randomTensor(
  shape: readonly number[],
  seed: number,
  { kinks = [], positive = false }: { kinks?: readonly number[]; positive?: boolean } = {},
): Tensor64 {
  let state = seed >>> 0;
  const uniform = (): number => {
    // Mulberry32.
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
  const length = shape.reduce((a, b) => a * b, 1);
  const data = Float64Array.from({ length }, () => {
    const value = positive ? 0.5 + uniform() : (uniform() + uniform() + uniform() - 1.5) * 2;
    return Math.fround(kinks.some(kink => Math.abs(value - kink) < 0.05) ? value + 0.125 : value);
  });
  return { shape, data };
}

export function toFloat32({ shape, data }: Tensor64): TensorF32 {
  return { shape, data: Float32Array.from(data) };
}

/**
 * The derivative of sum <output, cotangent> along a direction of one input: central differences at two steps, extrapolated
 * (Richardson 1911), so that the error is of the fourth order.
 */
export function directionalDerivative(graph: Graph, feeds: Feeds64, cotangents: Feeds64, name: string, direction: Tensor64): number {
  const at = (step: number): number => {
    const { shape, data } = feeds[name]!;
    const moved = { shape, data: data.map((value, i) => value + step * direction.data[i]!) };
    const results = interpret(graph, { ...feeds, [name]: moved });
    return graph.outputs.reduce((sum, output) => {
      const cotangent = cotangents[cotangentName(output.name)];
      if (!cotangent) return sum;
      return sum + results[output.name]!.data.reduce((part, value, i) => part + value * cotangent.data[i]!, 0);
    }, 0);
  };
  const central = (step: number): number => (at(step) - at(-step)) / (2 * step);
  return (4 * central(5e-4) - central(1e-3)) / 3;
}

/** Every element within `tolerance` of the tensor's greatest, at least 1. */
export function expectClose(name: string, got: TensorF32, want: Tensor64, tolerance: number): void {
  expect(got.shape, name).toEqual(want.shape);
  const scale = want.data.reduce((greatest, value) => Math.max(greatest, Math.abs(value)), 1);
  const error = want.data.reduce((greatest, value, i) => Math.max(greatest, Math.abs(value - got.data[i]!)), 0);
  expect(error, name).toBeLessThan(tolerance * scale);
}
