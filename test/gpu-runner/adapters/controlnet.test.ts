/** What becomes of a ControlNet's residuals, and what is refused. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ControlNet, openControlNet } from "../../../gpu-runner/adapters/controlnet/controlnet.ts";
import { scaleResiduals, sumResiduals } from "../../../gpu-runner/adapters/controlnet/residuals.ts";
import type { DiffusionModel, TensorF32 } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { tensor, wave } from "../support/graph.ts";
import { goldens } from "../support/model-folder.ts";

const nets = join(goldens, "../image-adapters/models");

const ones = (shape: readonly number[], value = 1): TensorF32 => tensor(shape, () => value);

describe("residuals", () => {
  const down = [ones([2, 1, 2, 2]), ones([2, 2, 1, 1])];
  const mid = ones([2, 1, 1, 1]);

  test("are scaled per item", () => {
    const scaled = scaleResiduals({ down, mid }, { weights: [0.5, 2], guessMode: false, globalPool: false });
    expect([...scaled.down[0]!.data]).toEqual([0.5, 0.5, 0.5, 0.5, 2, 2, 2, 2]);
    expect([...scaled.mid.data]).toEqual([0.5, 2]);
  });

  test("in guess mode rise from 0.1 to 1 in even steps of their logarithm", () => {
    const { down: scaled, mid: last } = scaleResiduals({ down, mid }, { weights: [1, 1], guessMode: true, globalPool: false });
    expect(scaled[0]!.data[0]).toBeCloseTo(0.1, 6);
    expect(scaled[1]!.data[0]).toBeCloseTo(Math.sqrt(0.1), 6);
    expect(last.data[0]).toBeCloseTo(1, 6);
  });

  test("under global pooling are means, which no guess mode grades", () => {
    const rising = tensor([1, 2, 2, 2], i => i);
    const options = { weights: [2], guessMode: true, globalPool: true };
    const scaled = scaleResiduals({ down: [rising], mid: ones([1, 1, 1, 1]) }, options);
    expect(scaled.down[0]).toEqual({ data: Float32Array.of(3, 11), shape: [1, 2, 1, 1] });
  });

  test("of several nets are added; a pooled one counts for every pixel, whichever comes first", () => {
    const pooled = { down: [ones([2, 1, 1, 1], 10), ones([2, 2, 1, 1], 10)], mid };
    for (const order of [
      [{ down, mid }, pooled],
      [pooled, { down, mid }],
    ]) {
      const sum = sumResiduals(order);
      expect(sum.down[0]).toEqual(ones([2, 1, 2, 2], 11));
      expect([...sum.mid.data]).toEqual([2, 2]);
    }
  });

  test("of nets with other layers are refused", () => {
    expect(() =>
      sumResiduals([
        { down, mid },
        { down: down.slice(1), mid },
      ]),
    ).toThrow("expected 2 residuals of every net, got 1");
    expect(() =>
      sumResiduals([
        { down, mid },
        { down, mid: ones([2, 3, 1, 1]) },
      ]),
    ).toThrow("expected [2,1,1,1] as of the first net, got [2,3,1,1]");
    expect(() => scaleResiduals({ down, mid }, { weights: [1], guessMode: false, globalPool: false })).toThrow(
      "expected 2, one per item, got 1",
    );
  });
});

describe("an open net", () => {
  const cacheDir = mkdtempSync(join(tmpdir(), "atelier-test-"));
  const options = { provider: "cpu", cacheDir, threads: 1 } as const;
  let sd15: DiffusionModel;
  let sdxl: DiffusionModel;
  let union: ControlNet;
  beforeAll(async () => {
    const load = (name: string): Promise<DiffusionModel> => loadDiffusionModel(join(goldens, "models", name), options);
    [sd15, sdxl] = await Promise.all([load("sd15"), load("sdxl")]);
    union = await openControlNet(join(nets, "controlnet-union"), sdxl.unet, options);
  });
  afterAll(async () => {
    await Promise.all([sd15.release(), sdxl.release(), union.release()]);
    rmSync(cacheDir, { recursive: true });
  });

  const args = (batch: number) => ({
    sample: wave([batch, 4, 4, 6]),
    timesteps: Array.from({ length: batch }, (_, i) => 900 - 300 * i),
    encoderHiddenStates: wave([batch, 5, 64], 2),
    added: {
      textEmbeds: wave([batch, sdxl.unet.config.added!.width - 6 * sdxl.unet.config.added!.timeWidth], 3),
      timeIds: wave([batch, 6], 4),
    },
    cond: tensor([batch, 3, 32, 48], i => (i % 97) / 97),
    control: 2,
  });

  test("computes each item of a batch as it does alone, also of a union", async () => {
    const both = args(2);
    const together = await union.run(both);
    const half = ({ data, shape }: TensorF32): TensorF32 => ({ data: data.slice(data.length / 2), shape: [1, ...shape.slice(1)] });
    const alone = await union.run({
      ...both,
      sample: half(both.sample),
      timesteps: both.timesteps.slice(1),
      encoderHiddenStates: half(both.encoderHiddenStates),
      added: { textEmbeds: half(both.added.textEmbeds), timeIds: half(both.added.timeIds) },
      cond: half(both.cond),
    });
    const difference = half(together.mid).data.map((value, i) => Math.abs(value - alone.mid.data[i]!));
    expect(Math.max(...difference)).toBeLessThan(1e-4);
    expect(union.controls).toBe(5);
  });

  test("changes the prediction, and not where its weight is 0", async () => {
    const { cond, control, ...rest } = args(2);
    const plain = await sdxl.predict(rest);
    const residuals = await union.run({ ...rest, cond, control });
    const scaled = scaleResiduals(residuals, { weights: [0, 1], guessMode: false, globalPool: false });
    const changed = await sdxl.predict({ ...rest, control: scaled });
    const size = plain.data.length / 2;
    const largest = (from: number): number =>
      Math.max(...plain.data.slice(from, from + size).map((value, i) => Math.abs(value - changed.data[from + i]!)));
    expect(largest(0)).toBeLessThan(1e-5);
    expect(largest(size)).toBeGreaterThan(0.01);
  });

  test("says which control, map and base it cannot take", async () => {
    await expect(union.run({ ...args(1), control: 5 })).rejects.toThrow(
      "feed at control: expected 0 to 4, which control of the union the map is, got 5",
    );
    await expect(union.run({ ...args(1), control: null })).rejects.toThrow("got null");
    await expect(union.run({ ...args(1), cond: wave([1, 3, 32, 32]) })).rejects.toThrow(
      "expected a control map [1,3,32,48], got [1,3,32,32]",
    );
    await expect(openControlNet(join(nets, "controlnet-union"), sd15.unet, options)).rejects.toThrow(
      "cross_attention_dim: expected 24 as the base has, got 64",
    );
    await expect(openControlNet(join(nets, "controlnet-sdxl-original.safetensors"), sd15.unet, options)).rejects.toThrow(
      "controlnet-sdxl-original.safetensors: input_blocks.1.1.norm.weight: expected a tensor [8], got none",
    );
    await expect(openControlNet(join(nets, "t2i-light"), sd15.unet, options)).rejects.toThrow(
      "_class_name: expected ControlNetModel or ControlNetUnionModel, got T2IAdapter",
    );
    await expect(openControlNet(join(nets, "ip-base.safetensors"), sd15.unet, options)).rejects.toThrow(
      "expected this key or input_hint_block.0.weight of a ControlNet, got neither",
    );
  });
});
