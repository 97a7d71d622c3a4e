/** Whether an output is what a reference case expects. */
import { isDeepStrictEqual } from "node:util";
import type { GoldenTensor, Tolerance } from "./kind.ts";

export interface Comparison {
  passed: boolean;
  /** Greatest |got - want|. */
  maxError: number;
  /** What differs, where it does. */
  problem?: string;
}

/** Element by element: |got - want| <= atol + rtol * |want|. */
export function compareTensors(output: string, got: GoldenTensor, want: GoldenTensor, { atol, rtol }: Tolerance): Comparison {
  if (!isDeepStrictEqual([...got.shape], [...want.shape]) || got.data.length !== want.data.length) {
    return { passed: false, maxError: Number.NaN, problem: `${output}: expected shape [${want.shape}], got [${got.shape}]` };
  }
  let maxError = 0;
  let worst = { index: -1, excess: 0 };
  for (let i = 0; i < want.data.length; i++) {
    const error = Math.abs(got.data[i]! - want.data[i]!);
    const excess = error - (atol + rtol * Math.abs(want.data[i]!));
    // Written so that NaN counts as the greatest excess.
    if (!(excess <= worst.excess)) worst = { index: i, excess: Number.isNaN(excess) ? Number.POSITIVE_INFINITY : excess };
    maxError = Math.max(maxError, error);
  }
  if (worst.index < 0) return { passed: true, maxError };
  const { index } = worst;
  return { passed: false, maxError, problem: `${output}[${index}]: expected ${want.data[index]}, got ${got.data[index]}` };
}

/** Deep equality; the problem names the first path that differs. */
export function compareJson(output: string, got: unknown, want: unknown): Comparison {
  const problem = firstDifference(output, got, want);
  return problem === undefined ? { passed: true, maxError: 0 } : { passed: false, maxError: Number.NaN, problem };
}

function firstDifference(path: string, got: unknown, want: unknown): string | undefined {
  if (isDeepStrictEqual(got, want)) return undefined;
  if (Array.isArray(got) && Array.isArray(want) && got.length === want.length) {
    const index = want.findIndex((value, i) => !isDeepStrictEqual(got[i], value));
    return firstDifference(`${path}[${index}]`, got[index], want[index]);
  }
  return `${path}: expected ${JSON.stringify(want)}, got ${JSON.stringify(got)}`;
}
