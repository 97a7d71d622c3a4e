/** What a training says of itself at its end. */
import { canonicalize, sha256Hex } from "../../shared/canonical.ts";
import type { TrainingReport, TrainingRequest } from "../../shared/training.ts";

/** Points of a curve in a message; all are in the file. */
const mostPoints = 1000;

/** SHA-256 of what the pictures, captions, masks and conditions are, in their order. */
export function datasetHash({ items, concepts }: TrainingRequest): Promise<string> {
  return sha256Hex(canonicalize({ items, concepts }));
}

/** The same report with at most `mostPoints` of each curve, evenly chosen, the last one among them. */
export function thinned(report: TrainingReport): TrainingReport {
  return { ...report, losses: thinnedCurve(report.losses), validation: thinnedCurve(report.validation) };
}

function thinnedCurve(curve: readonly [number, number][]): [number, number][] {
  if (curve.length <= mostPoints) return [...curve];
  return Array.from({ length: mostPoints }, (_, i) => curve[Math.round(((i + 1) * curve.length) / mostPoints) - 1]!);
}
