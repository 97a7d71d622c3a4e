/** Products of small matrices, row by row, summed in double precision. */

export interface Matrix {
  data: ArrayLike<number>;
  rows: number;
  columns: number;
}

/** a [m, k] x b [k, n] -> [m, n]. */
export function multiply(a: Matrix, b: Matrix): Matrix & { data: Float64Array } {
  const { rows, columns: inner } = a;
  const { columns } = b;
  const data = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    const out = data.subarray(i * columns, (i + 1) * columns);
    for (let k = 0; k < inner; k++) {
      const factor = a.data[i * inner + k]!;
      const start = k * columns;
      for (let j = 0; j < columns; j++) out[j]! += factor * b.data[start + j]!;
    }
  }
  return { data, rows, columns };
}

/**
 * Tucker's form of a convolution: out[o, i, x] = sum over p, q of left[o, p] core[p, q, x] right[q, i], with `spatial` values of x;
 * `left` is [o, p] and `right` [q, i]. Shape [o, i * spatial].
 */
export function tucker(left: Matrix, core: ArrayLike<number>, right: Matrix, spatial: number): Matrix & { data: Float64Array } {
  const [p, q, inputs] = [left.columns, right.rows, right.columns];
  // core [p, q, x] to [p * x, q], so that one product applies `right`.
  const turned = new Float64Array(p * spatial * q);
  for (let i = 0; i < p; i++)
    for (let j = 0; j < q; j++) for (let x = 0; x < spatial; x++) turned[(i * spatial + x) * q + j] = core[(i * q + j) * spatial + x]!;
  const widened = multiply({ data: turned, rows: p * spatial, columns: q }, right).data;
  // [p, x, i] to [p, i * x].
  const ordered = new Float64Array(widened.length);
  for (let i = 0; i < p; i++)
    for (let x = 0; x < spatial; x++)
      for (let j = 0; j < inputs; j++) ordered[(i * inputs + j) * spatial + x] = widened[(i * spatial + x) * inputs + j]!;
  return multiply(left, { data: ordered, rows: p, columns: inputs * spatial });
}

/** [m, n] -> [n, m]. */
export function transposed({ data, rows, columns }: Matrix): Matrix {
  const out = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = data[i * columns + j]!;
  return { data: out, rows: columns, columns: rows };
}

/** a [m, n] x b [p, q, x] -> [m * p, n * q, x]: every element of a times all of b. */
export function kronecker(a: Matrix, b: Matrix, spatial: number): Float64Array {
  const q = b.columns / spatial;
  const columns = a.columns * q;
  const out = new Float64Array(a.rows * b.rows * columns * spatial);
  for (let i = 0; i < a.rows; i++)
    for (let r = 0; r < b.rows; r++) {
      const row = (i * b.rows + r) * columns * spatial;
      for (let j = 0; j < a.columns; j++) {
        const factor = a.data[i * a.columns + j]!;
        const at = row + j * q * spatial;
        for (let s = 0; s < b.columns; s++) out[at + s] = factor * b.data[r * b.columns + s]!;
      }
    }
  return out;
}
