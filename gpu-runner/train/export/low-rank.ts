/** The best low-rank approximation of a matrix: randomised subspace iteration (Halko, Martinsson and Tropp 2011) with a small Jacobi rotation. */
import { multiply, transposed } from "../../adapters/lora/linear-algebra.ts";
import { normals } from "../random.ts";

/** Columns beyond the rank, and rounds over the matrix: with both the error is the truncated SVD's to about 1e-4. */
const oversampling = 8;
const rounds = 4;

export interface Factors {
  /** [m, rank] */
  up: Float32Array;
  /** [rank, n] */
  down: Float32Array;
  rank: number;
}

/** up x down with the singular values' roots on either side; the rank is at most the matrix's smaller side. @param data [m, n] */
export function lowRankFactors(data: Float32Array, m: number, n: number, wanted: number): Factors {
  const rank = Math.min(wanted, m, n);
  const width = Math.min(rank + oversampling, m, n);
  const matrix = { data, rows: m, columns: n };
  const turned = transposed(matrix);
  let basis = orthonormal(multiply(matrix, { data: normals(BigInt(m * 65_537 + n), n * width), rows: n, columns: width }).data, m, width);
  for (let round = 0; round < rounds; round++) {
    const back = orthonormal(multiply(turned, { data: basis, rows: m, columns: width }).data, n, width);
    basis = orthonormal(multiply(matrix, { data: back, rows: n, columns: width }).data, m, width);
  }
  const small = multiply(transposed({ data: basis, rows: m, columns: width }), matrix);
  const gram = multiply(small, transposed(small)).data;
  const { values, vectors } = symmetricEigen(gram, width);
  const order = values
    .map((_, i) => i)
    .sort((a, b) => values[b]! - values[a]!)
    .slice(0, rank);
  const rotation = new Float64Array(width * rank);
  for (const [column, source] of order.entries())
    for (let i = 0; i < width; i++) rotation[i * rank + column] = vectors[i * width + source]!;
  const left = multiply({ data: basis, rows: m, columns: width }, { data: rotation, rows: width, columns: rank }).data;
  const right = multiply(transposed({ data: rotation, rows: width, columns: rank }), small).data;
  const roots = order.map(i => Math.sqrt(Math.sqrt(Math.max(values[i]!, 0))));
  return {
    up: Float32Array.from(left, (value, i) => value * roots[i % rank]!),
    down: Float32Array.from(right, (value, i) => (roots[Math.floor(i / n)]! > 0 ? value / roots[Math.floor(i / n)]! : 0)),
    rank,
  };
}

/** Gram and Schmidt, twice over; a column that depends on the earlier ones becomes zero. @param data [rows, columns], changed in place */
function orthonormal(data: Float64Array, rows: number, columns: number): Float64Array {
  const dot = (a: number, b: number) => {
    let sum = 0;
    for (let i = 0; i < rows; i++) sum += data[i * columns + a]! * data[i * columns + b]!;
    return sum;
  };
  for (let column = 0; column < columns; column++) {
    const before = Math.sqrt(dot(column, column));
    for (let pass = 0; pass < 2; pass++)
      for (let earlier = 0; earlier < column; earlier++) {
        const share = dot(earlier, column);
        for (let i = 0; i < rows; i++) data[i * columns + column]! -= share * data[i * columns + earlier]!;
      }
    const length = Math.sqrt(dot(column, column));
    const factor = length > 1e-12 * before ? 1 / length : 0;
    for (let i = 0; i < rows; i++) data[i * columns + column]! *= factor;
  }
  return data;
}

/** Cyclic Jacobi rotations (Golub and Van Loan, 8.5). @param matrix [n, n] symmetric, changed @returns vectors in columns */
function symmetricEigen(matrix: Float64Array, n: number): { values: number[]; vectors: Float64Array } {
  const vectors = Float64Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));
  const total = matrix.reduce((sum, value) => sum + value * value, 0);
  for (let sweep = 0; sweep < 30; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        off += matrix[p * n + q]! ** 2;
        rotate(matrix, vectors, n, p, q);
      }
    if (off <= 1e-28 * total) break;
  }
  return { values: Array.from({ length: n }, (_, i) => matrix[i * (n + 1)]!), vectors };
}

function rotate(matrix: Float64Array, vectors: Float64Array, n: number, p: number, q: number): void {
  const apq = matrix[p * n + q]!;
  if (apq === 0) return;
  const theta = (matrix[q * (n + 1)]! - matrix[p * (n + 1)]!) / (2 * apq);
  const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const c = 1 / Math.sqrt(t * t + 1);
  const s = t * c;
  const turn = (array: Float64Array, a: number, b: number) => {
    const [x, y] = [array[a]!, array[b]!];
    array[a] = c * x - s * y;
    array[b] = s * x + c * y;
  };
  for (let i = 0; i < n; i++) turn(matrix, i * n + p, i * n + q);
  for (let i = 0; i < n; i++) turn(matrix, p * n + i, q * n + i);
  for (let i = 0; i < n; i++) turn(vectors, i * n + p, i * n + q);
}
