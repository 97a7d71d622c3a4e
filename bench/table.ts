import type { Row } from "./benchmark.ts";

/** Rows as text in columns; a column that some row lacks is blank there. */
export function formatTable(rows: readonly Row[]): string {
  const columns = [...new Set(rows.flatMap(row => Object.keys(row)))];
  const cells = [columns, ...rows.map(row => columns.map(column => formatCell(row[column])))];
  const widths = columns.map((_, i) => Math.max(...cells.map(line => line[i]!.length)));
  const isText = columns.map(column => rows.every(row => typeof row[column] !== "number"));
  return cells.map(line => line.map((cell, i) => (isText[i] ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join("  ")).join("\n");
}

/** Three significant digits, without exponents. */
function formatCell(value: string | number | undefined): string {
  if (typeof value !== "number") return value ?? "";
  if (Number.isInteger(value) || Math.abs(value) >= 100) return value.toFixed(0);
  return String(Number(value.toPrecision(3)));
}
