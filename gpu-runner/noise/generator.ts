/** Draws unit Gaussian noise, `count` values a call; successive calls give successive draws. */
export type NoiseGenerator = (count: number) => Float32Array;

/** One generator per item of a batch, drawn side by side: an item's noise does not depend on its neighbours. */
export function batchNoise(generators: readonly NoiseGenerator[], countPerItem: number): Float32Array {
  const values = new Float32Array(generators.length * countPerItem);
  for (const [item, generator] of generators.entries()) values.set(generator(countPerItem), item * countPerItem);
  return values;
}
