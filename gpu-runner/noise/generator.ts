/** Draws unit Gaussian noise, `count` values a call; successive calls give successive draws. */
export type NoiseGenerator = (count: number) => Float32Array;
