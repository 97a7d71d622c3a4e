/** [rows, columns] with orthonormal columns, or rows where these are fewer (Gram and Schmidt, twice for rounding's sake). */
export function orthonormal(values: Float32Array, rows: number, columns: number): Float32Array {
  const wide = rows < columns;
  const [count, length] = wide ? [rows, columns] : [columns, rows];
  const index = (vector: number, i: number): number => (wide ? vector * columns + i : i * columns + vector);
  const vectors = Array.from({ length: count }, (_, vector) => Float64Array.from({ length }, (_, i) => values[index(vector, i)]!));
  vectors.forEach((vector, k) => {
    for (const earlier of [...vectors.slice(0, k), ...vectors.slice(0, k)]) {
      const share = vector.reduce((sum, value, i) => sum + value * earlier[i]!, 0);
      for (let i = 0; i < length; i++) vector[i]! -= share * earlier[i]!;
    }
    const norm = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
    for (let i = 0; i < length; i++) vector[i]! /= norm;
  });
  const out = new Float32Array(rows * columns);
  vectors.forEach((vector, k) => {
    for (let i = 0; i < length; i++) out[index(k, i)] = vector[i]!;
  });
  return out;
}
