import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { dynamicMap } from "../../../gpu-runner/train/moments.ts";
import { AdamW, type AdamWSettings } from "../../../gpu-runner/train/optimizer.ts";
import { TrainedTensors } from "../../../gpu-runner/train/trained-tensors.ts";

const settings: AdamWSettings = { betas: [0.9, 0.99], weight_decay: 0.1, epsilon: 1e-6, clip_norm: 0.5, moments: "float32" };
const numbers = z.array(z.number());
const rates = { main: 1e-2, text: 1e-3 };
/** Across a chunk's and a block's end. */
const sizes = { main: 70_000, text: 300 };

function trained(): TrainedTensors {
  const tensors = new TrainedTensors([
    { name: "a", shape: [sizes.main], group: "main" },
    { name: "b", shape: [sizes.text], group: "text" },
  ]);
  tensors.values.forEach((_, i) => {
    tensors.values[i] = Math.sin(i);
  });
  return tensors;
}

function setGradients({ gradients }: TrainedTensors, step: number): void {
  for (let i = 0; i < gradients.length; i++) gradients[i] = Math.cos(i * 1.3 + step) / 50;
}

describe("AdamW", () => {
  test("follows the formula in float64, with clipping and a rate for each group", async () => {
    const tensors = trained();
    const want = Float64Array.from(tensors.values);
    const [first, second] = [new Float64Array(want.length), new Float64Array(want.length)];
    const adamw = new AdamW(tensors, settings);
    for (let step = 1; step <= 4; step++) {
      setGradients(tensors, step);
      const norm = Math.sqrt(tensors.gradients.reduce((sum, value) => sum + value * value, 0));
      expect(norm).toBeGreaterThan(0.5);
      expect(await adamw.step(step, rates)).toBeCloseTo(norm, 8);
      for (let i = 0; i < want.length; i++) {
        const rate = i < sizes.main ? rates.main : rates.text;
        const gradient = (tensors.gradients[i]! * 0.5) / (norm + 1e-6);
        first[i] = 0.9 * first[i]! + 0.1 * gradient;
        second[i] = 0.99 * second[i]! + 0.01 * gradient ** 2;
        const mean = first[i]! / (1 - 0.9 ** step);
        const square = second[i]! / (1 - 0.99 ** step);
        want[i] = want[i]! * (1 - rate * 0.1) - (rate * mean) / (Math.sqrt(square) + 1e-6);
      }
    }
    const error = want.reduce((worst, value, i) => Math.max(worst, Math.abs(value - tensors.values[i]!)), 0);
    expect(error).toBeLessThan(1e-6);
  });

  test("goes on from its state as if it had not been interrupted", async () => {
    const [whole, parted] = [trained(), trained()];
    const straight = new AdamW(whole, settings);
    const before = new AdamW(parted, settings);
    for (let step = 1; step <= 3; step++) {
      setGradients(whole, step);
      await straight.step(step, rates);
    }
    for (let step = 1; step <= 3; step++) {
      setGradients(parted, step);
      if (step < 3) await before.step(step, rates);
    }
    const after = new AdamW(parted, settings);
    for (const [name, array] of before.state) after.state.get(name)!.set(array);
    await after.step(3, rates);
    expect(parted.values).toEqual(whole.values);
  });

  test("moments of 8 bits take a quarter of the memory and move alike", async () => {
    const [exact, coded] = [trained(), trained()];
    const start = exact.values.slice();
    const optimisers = [new AdamW(exact, settings), new AdamW(coded, { ...settings, moments: "8-bit" })] as const;
    for (let step = 1; step <= 10; step++) {
      for (const tensors of [exact, coded]) setGradients(tensors, 1);
      for (const optimiser of optimisers) await optimiser.step(step, rates);
    }
    const [full, small] = optimisers.map(({ state }) => [...state.values()].reduce((bytes, array) => bytes + array.byteLength, 0));
    expect(small! / full!).toBeLessThan(0.26);
    const difference = Math.hypot(...distances(exact.values, coded.values));
    expect(difference / Math.hypot(...distances(exact.values, start))).toBeLessThan(0.1);
  });

  test("moments of 8 bits are bitsandbytes' blocks and codes, tensor by tensor", async () => {
    const wanted = z
      .object({
        maps: z.object({ signed: numbers, unsigned: numbers }),
        codes: z.object({ first: numbers, second: numbers }),
        values: numbers,
      })
      .parse(JSON.parse(readFileSync("test/goldens/optimizer/moments-8-bit.json", "utf8")));
    for (const [map, isSigned] of [
      [wanted.maps.signed, true],
      [wanted.maps.unsigned, false],
    ] as const) {
      const got = dynamicMap(isSigned);
      // torch's linspace rounds in between.
      map.forEach((value, i) => {
        expect(Math.abs(got[i]! - value)).toBeLessThanOrEqual(2e-7 * Math.abs(value));
      });
    }
    const tensors = new TrainedTensors([
      { name: "a", shape: [700], group: "main" },
      { name: "b", shape: [300], group: "main" },
    ]);
    const formula = (i: number, step: number) => (((i * 7919 + step * 1013) % 4001) - 2000) / 65536;
    tensors.values.forEach((_, i) => {
      tensors.values[i] = formula(i, 50);
    });
    const adamw = new AdamW(tensors, { ...settings, epsilon: 1e-8, clip_norm: null, moments: "8-bit" });
    for (let step = 1; step <= 5; step++) {
      for (let i = 0; i < 1000; i++) tensors.gradients[i] = formula(i, step);
      await adamw.step(step, rates);
    }
    // At each step a few of a thousand numbers take the code beside bitsandbytes', and what they move differs from then on.
    for (const moment of ["first", "second"] as const) {
      const distances = Array.from(adamw.state.get(`${moment}.codes`)!, (code, i) => Math.abs(code - wanted.codes[moment][i]!));
      expect(Math.max(...distances)).toBeLessThanOrEqual(1);
      expect(distances.filter(distance => distance > 0).length, moment).toBeLessThanOrEqual(5);
    }
    const errors = wanted.values.map((value, i) => Math.abs(tensors.values[i]! - value));
    expect(errors.filter(error => error > 1e-6).length).toBeLessThanOrEqual(20);
    expect(Math.max(...errors)).toBeLessThan(5e-4);
  });
});

/** Of each hundredth element. */
function distances(a: Float32Array, b: Float32Array): number[] {
  return Array.from({ length: Math.floor(a.length / 100) }, (_, i) => a[100 * i]! - b[100 * i]!);
}
