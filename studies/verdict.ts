import type { TrainingScores } from "../shared/training.ts";

/** What a training on the pocket model has to reach to count as learned: more than a LoRA of one object reaches on another. */
export const thresholds = { gain: 0.04, prior: 1.03 } as const;

/** @param leavesBase whether nothing may move where the token is absent: of an inversion @returns what was not reached; empty: it learned */
export function shortfalls({ gain, binding, prior, drift }: TrainingScores, leavesBase = false): string[] {
  const checks: [boolean, string][] = [
    [gain.value >= thresholds.gain, `gain ${percent(gain.value)}, expected at least ${percent(thresholds.gain)}`],
    [gain.low > 0, `gain's interval begins at ${percent(gain.low)}, expected above 0`],
    [binding.value > 0, `binding ${percent(binding.value)}, expected above 0`],
    [prior === null || prior.value <= thresholds.prior, `prior ratio ${prior?.value.toFixed(3)}, expected at most ${thresholds.prior}`],
    [!leavesBase || (drift.high === 0 && (prior === null || prior.value === 1)), "pictures without the token differ, expected the same"],
  ];
  return checks.filter(([holds]) => !holds).map(([, text]) => text);
}

export const percent = (share: number) => `${(share * 100).toFixed(1)} %`;

/** @param gains of each concept's weights (row) on each concept's pictures (column) @returns for how many columns the own row is the best by itself */
export function ownBest(gains: readonly (readonly number[])[]): number {
  return gains.filter((row, own) => gains.every((other, i) => i === own || other[own]! < row[own]!)).length;
}

/** Of eight. */
export const leastOwnBest = 7;
