import fc from "fast-check";
import { expect, test } from "vitest";
import { DataCursor, drawTimestep, itemChoices, itemNoise } from "../../../gpu-runner/train/data-cursor.ts";
import type { LossSettings } from "../../../shared/training.ts";

const loss: LossSettings = {
  min_snr_gamma: null,
  noise_offset: 0,
  zero_terminal_snr: null,
  timestep_sampling: "uniform",
  timesteps: [100, 299],
  prior_weight: 1,
};

test("an epoch shows every item, in full batches of one bucket, in an order of its own", () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 30 }),
      fc.integer({ min: 1, max: 5 }),
      fc.nat(1000),
      (buckets, batchSize, seed) => {
        const cursor = new DataCursor({ seed, batchSize, buckets });
        const batches = Array.from({ length: cursor.batchesPerEpoch }, (_, i) => cursor.batch(i));
        for (const batch of batches) {
          expect(batch).toHaveLength(batchSize);
          expect(new Set(batch.map(item => buckets[item])).size).toBe(1);
        }
        expect(new Set(batches.flat()).size).toBe(buckets.length);
      },
    ),
  );
});

test("a batch depends on its number alone, and epochs differ", () => {
  const settings = { seed: 5, batchSize: 2, buckets: Array<number>(20).fill(0) };
  const cursor = new DataCursor(settings);
  const all = Array.from({ length: 20 }, (_, i) => cursor.batch(i));
  expect(new DataCursor(settings).batch(17)).toEqual(all[17]);
  expect(all.slice(0, 10)).not.toEqual(all.slice(10));
});

test("timesteps keep to their range; uniform ones fill it evenly, logit-normal ones its middle", () => {
  const draws = (timestep_sampling: LossSettings["timestep_sampling"]) =>
    Array.from({ length: 2000 }, (_, i) =>
      itemChoices({ seed: 1, loss: { ...loss, timestep_sampling }, captionDropout: 0.25, flip: true }, i, 0),
    );
  const uniform = draws("uniform");
  const middle = (list: typeof uniform) => list.filter(({ timestep }) => timestep >= 150 && timestep < 250).length / list.length;
  for (const { timestep } of [...uniform, ...draws("logit-normal")]) expect(timestep >= 100 && timestep <= 299).toBe(true);
  expect(middle(uniform)).toBeGreaterThan(0.46);
  expect(middle(uniform)).toBeLessThan(0.54);
  // P(|z| < ln 3) of a unit Gaussian is 0.728.
  expect(middle(draws("logit-normal"))).toBeGreaterThan(0.69);
  expect(uniform.filter(({ dropsCaption }) => dropsCaption).length / 2000).toBeCloseTo(0.25, 1);
  expect(uniform.filter(({ isFlipped }) => isFlipped).length / 2000).toBeCloseTo(0.5, 1);
  expect(drawTimestep({ ...loss, timesteps: [7, 7] }, 123n)).toBe(7);
});

test("noise is its counters' own, and an offset shifts each channel by one number", () => {
  const plain = itemNoise(3, [4, 1], 4, 256, 0);
  expect(itemNoise(3, [4, 1], 4, 256, 0)).toEqual(plain);
  expect(itemNoise(3, [4, 2], 4, 256, 0)).not.toEqual(plain);
  const shifted = itemNoise(3, [4, 1], 4, 256, 0.1);
  const shift = Array.from(shifted, (value, i) => value - plain[i]!);
  for (let i = 0; i < shift.length; i++) expect(shift[i]).toBeCloseTo(shift[Math.floor(i / 256) * 256]!, 5);
  expect(Math.abs(plain.reduce((sum, value) => sum + value, 0) / plain.length)).toBeLessThan(0.1);
});
