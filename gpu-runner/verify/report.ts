/** The table that `npm run verify` prints. */
import type { CaseResult } from "./run.ts";

const columns = { name: 44, kind: 13, error: 12, tolerance: 24 } as const;

export function tableHeader(): string {
  return row("case", "kind", "max error", "tolerance", "result");
}

export function tableRow(result: CaseResult): string {
  const { name, kind } = result;
  if (result.status === "unsupported") return row(name, kind, "", "", `unsupported: ${result.reason}`);
  const { status, maxError, tolerance, problem } = result;
  const allowed = `${tolerance.atol} + ${tolerance.rtol} * |x|`;
  return row(
    name,
    kind,
    Number.isNaN(maxError) ? "-" : maxError.toPrecision(3),
    allowed,
    problem === undefined ? status : `${status}: ${problem}`,
  );
}

export function summary(results: readonly CaseResult[]): string {
  const count = (status: CaseResult["status"]) => results.filter(result => result.status === status).length;
  return `${results.length} cases: ${count("pass")} pass, ${count("FAIL")} FAIL, ${count("unsupported")} unsupported`;
}

function row(name: string, kind: string, error: string, tolerance: string, result: string): string {
  return [
    name.padEnd(columns.name),
    kind.padEnd(columns.kind),
    error.padEnd(columns.error),
    tolerance.padEnd(columns.tolerance),
    result,
  ].join(" ");
}
