/** IP-Adapters in a batch: weights, masks and several at once; and what is refused. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type IpAdapter, openIpAdapter } from "../../../gpu-runner/adapters/ip-adapter/ip-adapter.ts";
import type { DiffusionModel, IpAdapterUse, TensorF32 } from "../../../gpu-runner/components.ts";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { resizeBicubic } from "../../../gpu-runner/models/resize-bicubic.ts";
import { tensor, wave } from "../support/graph.ts";
import { goldens } from "../support/model-folder.ts";

const adapters = join(goldens, "../image-adapters/models");
const cacheDir = mkdtempSync(join(tmpdir(), "atelier-test-"));
const options = { provider: "cpu", cacheDir, threads: 1 } as const;

let model: DiffusionModel;
let base: IpAdapter;
let full: IpAdapter;
beforeAll(async () => {
  model = await loadDiffusionModel(join(goldens, "models/sd15"), options);
  [base, full] = await Promise.all([
    openIpAdapter(join(adapters, "ip-base.safetensors"), model.unet, options),
    openIpAdapter(join(adapters, "ip-full.safetensors"), model.unet, options),
  ]);
});
afterAll(async () => {
  await Promise.all([base.release(), full.release(), model.release()]);
  rmSync(cacheDir, { recursive: true });
});

const args = { sample: wave([2, 4, 5, 7]), timesteps: [700, 20], encoderHiddenStates: wave([2, 6, 24], 1) };
const picture = { data: Uint8Array.from({ length: 40 * 50 * 3 }, (_, i) => (i * 37) % 256), width: 50, height: 40 };

async function useOf(adapter: IpAdapter, weights: readonly number[], mask?: TensorF32): Promise<IpAdapterUse> {
  const { tokens } = await adapter.tokens([{ pixelValues: adapter.preprocess(picture), weight: 1 }]);
  const data = new Float32Array(tokens.data.length * 2);
  data.set(tokens.data);
  data.set(tokens.data, tokens.data.length);
  return { layers: adapter.layers, tokens: { data, shape: [2, ...tokens.shape.slice(1)] }, weights, ...(mask && { mask }) };
}

/** Of each item. */
function differences(a: TensorF32, b: TensorF32): number[] {
  const size = a.data.length / 2;
  return [0, 1].map(item =>
    Math.max(...a.data.slice(item * size, (item + 1) * size).map((value, i) => Math.abs(value - b.data[item * size + i]!))),
  );
}

describe("in a batch", () => {
  test("an item of weight 0 stays as it is, the other changes", async () => {
    const plain = await model.predict(args);
    const changed = await model.predict({ ...args, ipAdapters: [await useOf(base, [0, 0.8])] });
    const [first, second] = differences(plain, changed);
    expect(first).toBeLessThan(1e-5);
    expect(second).toBeGreaterThan(0.01);
  });

  test("a mask of ones changes nothing, one of zeros takes the adapter away, and masks differ by item", async () => {
    const everywhere = await model.predict({ ...args, ipAdapters: [await useOf(base, [1, 1])] });
    const ones = await model.predict({
      ...args,
      ipAdapters: [
        await useOf(
          base,
          [1, 1],
          tensor([1, 9, 4], () => 1),
        ),
      ],
    });
    expect(Math.max(...differences(everywhere, ones))).toBeLessThan(1e-5);
    const own = tensor([2, 5, 7], i => (i < 35 ? 0 : 1));
    const half = await model.predict({ ...args, ipAdapters: [await useOf(base, [1, 1], own)] });
    expect(differences(await model.predict(args), half)[0]).toBeLessThan(1e-5);
    expect(differences(everywhere, half)[1]).toBeLessThan(1e-5);
  });

  test("two adapters with other counts of tokens work side by side, in either order", async () => {
    const [one, other] = [await useOf(base, [1, 0]), await useOf(full, [0, 1])];
    const both = await model.predict({ ...args, ipAdapters: [one, other] });
    expect(differences(both, await model.predict({ ...args, ipAdapters: [one] }))[0]).toBeLessThan(1e-5);
    expect(differences(both, await model.predict({ ...args, ipAdapters: [other] }))[1]).toBeLessThan(1e-5);
    expect(Math.max(...differences(both, await model.predict({ ...args, ipAdapters: [other, one] })))).toBeLessThan(1e-5);
  });

  test("weights and masks of another count are refused", async () => {
    const use = await useOf(base, [1]);
    await expect(model.predict({ ...args, ipAdapters: [use] })).rejects.toThrow("expected 2 weights, one per item, got 1");
    const masked = await useOf(
      base,
      [1, 1],
      tensor([3, 2, 2], () => 1),
    );
    await expect(model.predict({ ...args, ipAdapters: [masked] })).rejects.toThrow("expected a mask [1 or 2, h, w], got [3,2,2]");
  });
});

test("references follow one another, each embedding times its weight; nothing is zeros of base and a black picture of others", async () => {
  const pixelValues = base.preprocess(picture);
  const { tokens, unconditional } = await base.tokens([
    { pixelValues, weight: 1 },
    { pixelValues, weight: 0 },
  ]);
  expect(tokens.shape).toEqual([1, 8, 24]);
  expect(tokens.data.slice(4 * 24)).toEqual(unconditional.data.slice(0, 4 * 24));
  expect((await base.embedNothing()).data.every(value => value === 0)).toBe(true);
  expect((await full.embedNothing()).data.every(value => value === 0)).toBe(false);
});

test("says which base, picture or embedding it cannot take", async () => {
  const sdxl = await loadDiffusionModel(join(goldens, "models/sdxl"), options);
  await expect(openIpAdapter(join(adapters, "ip-base.safetensors"), sdxl.unet, options)).rejects.toThrow(
    "width of the image tokens: expected 64, the base's cross-attention width, got 24",
  );
  await sdxl.release();
  await expect(openIpAdapter(join(adapters, "t2i-original.safetensors"), model.unet, options)).rejects.toThrow(
    "image_proj.*: expected one of proj.weight",
  );
  await expect(openIpAdapter(join(adapters, "nothing"), model.unet, options)).rejects.toThrow("expected a file or folder, got none");
  await expect(base.embed(wave([1, 3, 8, 8]))).rejects.toThrow("feed at pixel_values: expected [1,3,30,30], got [1,3,8,8]");
  await expect(base.tokens([{ pixelValues: null, weight: 1 }])).rejects.toThrow("base at reference: expected a picture, got none");
  const face = await openIpAdapter(join(adapters, "ip-faceid.safetensors"), model.unet, options);
  expect(face.encoder).toBeNull();
  // Four projections of two attentions in each transformer block.
  expect(face.lora?.changes).toHaveLength(4 * 2 * face.layers.layers.size);
  await expect(face.tokens([{ pixelValues: null, weight: 1 }])).rejects.toThrow("expected a face's embedding [1,16], got none");
  await expect(face.tokens([{ pixelValues: null, face: wave([1, 12]), weight: 1 }])).rejects.toThrow("got [1,12]");
  await face.release();
});

test("bicubic resizing keeps a picture at its size and one colour at any", () => {
  const mask = wave([2, 3, 4]);
  expect(resizeBicubic(mask, [3, 4]).data).toEqual(mask.data);
  const flat = resizeBicubic(
    tensor([1, 3, 4], () => 0.25),
    [7, 2],
  );
  expect(flat.shape).toEqual([1, 7, 2]);
  for (const value of flat.data) expect(value).toBeCloseTo(0.25, 6);
});
