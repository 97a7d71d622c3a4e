/** Guidance: combining the predictions for an item's prompts. */

/**
 * Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) and its rescaling (Lin et al., arXiv 2305.08891, section 3.4), of one item.
 * @param rescale share of the result that is brought to the conditional prediction's deviation
 */
export function guide(unconditional: Float32Array, conditional: Float32Array, scale: number, rescale: number): Float32Array {
  const guided = conditional.map((value, i) => unconditional[i]! + scale * (value - unconditional[i]!));
  if (rescale === 0) return guided;
  const factor = (rescale * deviation(conditional)) / deviation(guided) + 1 - rescale;
  return guided.map(value => value * factor);
}

/**
 * Guidance towards a text and towards a picture (Brooks et al., arXiv 2211.09800, equation 3).
 * @param image prediction with the picture and the negative prompt, @param unconditional without the picture
 */
export function guideEdit(
  unconditional: Float32Array,
  image: Float32Array,
  conditional: Float32Array,
  scale: number,
  imageScale: number,
): Float32Array {
  return conditional.map((value, i) => unconditional[i]! + scale * (value - image[i]!) + imageScale * (image[i]! - unconditional[i]!));
}

/** Sample standard deviation, with n - 1. */
function deviation(values: Float32Array): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
}
