/** Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) and its rescaling (Lin et al., arXiv 2305.08891, section 3.4). */

/**
 * @param output predictions of 2 * batch items: the unconditional half, then the conditional
 * @param rescale share of the result that is brought to the conditional prediction's deviation, item by item
 */
export function guide(output: Float32Array, batch: number, scale: number, rescale: number): Float32Array {
  const half = output.length / 2;
  const [unconditional, conditional] = [output.subarray(0, half), output.subarray(half)];
  const guided = conditional.map((value, i) => unconditional[i]! + scale * (value - unconditional[i]!));
  if (rescale === 0) return guided;
  const size = half / batch;
  for (let start = 0; start < half; start += size) {
    const item = guided.subarray(start, start + size);
    const ratio = deviation(conditional.subarray(start, start + size)) / deviation(item);
    const factor = rescale * ratio + 1 - rescale;
    for (let i = 0; i < size; i++) item[i]! *= factor;
  }
  return guided;
}

/** Sample standard deviation, with n - 1. */
function deviation(values: Float32Array): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
}
