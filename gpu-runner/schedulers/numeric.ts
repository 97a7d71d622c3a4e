/** The few numpy functions whose exact behaviour decides timesteps and noise levels. */

/** numpy.linspace: `count` values from start to stop, both included. */
export function linspace(start: number, stop: number, count: number): number[] {
  if (count === 1) return [start];
  const step = (stop - start) / (count - 1);
  return Array.from({ length: count }, (_, i) => (i === count - 1 ? stop : i * step + start));
}

/** numpy.arange with a negative step: values from start down to, and without, stop. */
export function countDown(start: number, stop: number, step: number): number[] {
  const delta = start - step - start;
  return Array.from({ length: Math.ceil((start - stop) / step) }, (_, i) => start + i * delta);
}

/** numpy.round: halves go to the even neighbour. */
export function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const fraction = value - floor;
  if (fraction !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** numpy.interp over the points (0, values[0]), (1, values[1]), …; clamped at both ends. */
export function interpolate(position: number, values: ArrayLike<number>): number {
  const last = values.length - 1;
  if (position <= 0) return values[0]!;
  if (position >= last) return values[last]!;
  const low = Math.floor(position);
  return (values[low + 1]! - values[low]!) * (position - low) + values[low]!;
}

/** x with A x = b for a small regular matrix, by Gauss-Jordan elimination with pivots. */
export function solveLinear(matrix: readonly (readonly number[])[], vector: readonly number[]): number[] {
  const rows = matrix.map((row, i) => [...row, vector[i]!]);
  for (let column = 0; column < rows.length; column++) {
    const pivot = rows.reduce((best, row, i) => (i > column && Math.abs(row[column]!) > Math.abs(rows[best]![column]!) ? i : best), column);
    [rows[column], rows[pivot]] = [rows[pivot]!, rows[column]!];
    const source = rows[column]!;
    for (const row of rows) {
      if (row === source) continue;
      const factor = row[column]! / source[column]!;
      for (let k = column; k < row.length; k++) row[k]! -= factor * source[k]!;
    }
  }
  return rows.map((row, i) => row.at(-1)! / row[i]!);
}
