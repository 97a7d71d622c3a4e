/** The linear combination c0 * x0 + c1 * x1 + …, summed in double. A coefficient of zero drops its term, even an infinite one. */
export function combine(...terms: readonly (readonly [coefficient: number, values: Float32Array])[]): Float32Array {
  const kept = terms.filter(([coefficient]) => coefficient !== 0);
  const length = terms[0]![1].length;
  const sum = new Float64Array(length);
  for (const [coefficient, values] of kept) {
    for (let i = 0; i < length; i++) sum[i]! += coefficient * values[i]!;
  }
  return Float32Array.from(sum);
}
