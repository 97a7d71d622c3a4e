/**
 * Aspect buckets as sd-scripts makes them (library/model_util.py `make_bucket_resolutions`): sizes of about one area, so that pictures
 * keep their proportions and a batch has one size.
 */

export interface Size {
  width: number;
  height: number;
}

/**
 * Sizes that are multiples of `multiple` and no larger in area than `resolution` squared, from half to twice the resolution along a side.
 * @throws RangeError where not even one fits
 */
export function bucketSizes(resolution: number, multiple: number): Size[] {
  const area = resolution * resolution;
  const floor = (size: number) => Math.floor(size / multiple) * multiple;
  const [least, most] = [Math.max(floor(resolution / 2), multiple), floor(resolution * 2)];
  const sizes = new Map<string, Size>();
  const add = (width: number, height: number) => {
    if (height >= least && width <= most) sizes.set(`${width}x${height}`, { width, height });
  };
  add(floor(resolution), floor(resolution));
  for (let width = least; width <= most; width += multiple) {
    const height = Math.min(most, floor(area / width));
    add(width, height);
    add(height, width);
  }
  if (sizes.size === 0) throw new RangeError(`resolution: expected at least ${multiple}, got ${resolution}`);
  return [...sizes.values()].sort((a, b) => a.width / a.height - b.width / b.height || a.width - b.width);
}

/** The bucket that cuts least off a picture; of equals the larger. */
export function nearestBucket(sizes: readonly Size[], { width, height }: Size): number {
  const distance = (size: Size) => Math.abs(Math.log(size.width / size.height) - Math.log(width / height));
  const better = (a: Size, b: Size) => distance(a) - distance(b) || b.width * b.height - a.width * a.height;
  return sizes.reduce((best, size, i) => (better(size, sizes[best]!) < 0 ? i : best), 0);
}
