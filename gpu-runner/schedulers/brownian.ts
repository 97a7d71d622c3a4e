/**
 * A Brownian motion that is looked up, not rolled out: its value at each new time is drawn by the bridge between its known neighbours (Lévy's
 * construction), so that increments over overlapping intervals are consistent. What torchsde's Brownian tree does for k-diffusion's SDE
 * samplers, with draws from the item's own generator.
 */
import { combine } from "./combine.ts";
import type { IntervalNoise } from "./sampler.ts";

/** @param draw unit Gaussian noise, a draw for each new time but the first */
export function brownianNoise(draw: () => Float32Array): IntervalNoise {
  /** Known values by rising time; the motion is zero at the first time asked for. */
  const known: { time: number; value: Float32Array | null }[] = [];
  const at = (time: number): Float32Array | null => {
    const position = known.findIndex(point => point.time >= time);
    if (position >= 0 && known[position]!.time === time) return known[position]!.value;
    const insert = position < 0 ? known.length : position;
    const value = bridge(known[insert - 1], known[insert], time, draw);
    known.splice(insert, 0, { time, value });
    return value;
  };
  return (from, to) => {
    if (from === to) throw new RangeError(`expected an interval, got the single time ${from}`);
    const [start, end] = [at(from), at(to)];
    const scale = 1 / Math.sqrt(Math.abs(to - from));
    if (start === null) return combine([scale, end!]);
    return end === null ? combine([-scale, start]) : combine([scale, end], [-scale, start]);
  };
}

interface Point {
  time: number;
  /** null: zero. */
  value: Float32Array | null;
}

/** Value at a time given the neighbours before and after it; the first value of all is zero. */
function bridge(before: Point | undefined, after: Point | undefined, time: number, draw: () => Float32Array): Float32Array | null {
  if (!before && !after) return null;
  const terms: [number, Float32Array][] = [];
  const add = (weight: number, { value }: Point) => value && terms.push([weight, value]);
  if (before && after) {
    const share = (time - before.time) / (after.time - before.time);
    add(1 - share, before);
    add(share, after);
    terms.push([Math.sqrt(share * (after.time - time)), draw()]);
  } else {
    const neighbour = (before ?? after)!;
    add(1, neighbour);
    terms.push([Math.sqrt(Math.abs(time - neighbour.time)), draw()]);
  }
  return combine(...terms);
}
