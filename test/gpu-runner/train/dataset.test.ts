import { readdirSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import sharp from "sharp";
import { expect, test } from "vitest";
import type { DiffusionModel, UnetBase } from "../../../gpu-runner/components.ts";
import { bucketSizes, nearestBucket } from "../../../gpu-runner/train/buckets.ts";
import { CaptionStates, controlMapOf, prepareItems, splitItems } from "../../../gpu-runner/train/dataset.ts";
import type { DatasetItem } from "../../../shared/training.ts";
import { arithmeticModel, contextWith } from "../pipeline/fixtures.ts";
import { temporaryFolder } from "../support/temporary.ts";

const item: DatasetItem = { sha256: "a", caption: "a toy", width: 64, height: 64, split: "train", mask: null, condition: null, concept: 0 };

/** A model with some of its members replaced. */
function changed(model: DiffusionModel, changes: Partial<DiffusionModel>): DiffusionModel {
  return Object.defineProperties(Object.create(model), Object.getOwnPropertyDescriptors(changes));
}

test("buckets keep the area and their multiple; 512 gives sd-scripts' sizes", () => {
  fc.assert(
    fc.property(fc.integer({ min: 64, max: 1024 }), fc.constantFrom(8, 16, 32, 64), (resolution, multiple) => {
      for (const { width, height } of bucketSizes(resolution, multiple)) {
        expect([width % multiple, height % multiple]).toEqual([0, 0]);
        expect(width * height).toBeLessThanOrEqual(resolution * resolution);
      }
    }),
  );
  const sizes = bucketSizes(512, 64).map(({ width, height }) => `${width}x${height}`);
  expect(sizes).toEqual(expect.arrayContaining(["256x1024", "384x640", "448x576", "512x512", "576x448", "640x384", "1024x256"]));
  expect(bucketSizes(512, 64)[nearestBucket(bucketSizes(512, 64), { width: 900, height: 900 })]).toEqual({ width: 512, height: 512 });
  expect(bucketSizes(512, 64)[nearestBucket(bucketSizes(512, 64), { width: 1000, height: 610 })]).toEqual({ width: 640, height: 384 });
});

test("pictures become latents in both orientations, cached by content; masks become means and maps are mirrored with them", async () => {
  const folder = temporaryFolder();
  // Red falls from left to right; the mask's left half is white.
  const pixels = Buffer.from(Array.from({ length: 64 * 64 }, (_, i) => [255 - 4 * (i % 64), 0, 0]).flat());
  await sharp(pixels, { raw: { width: 64, height: 64, channels: 3 } })
    .png()
    .toFile(join(folder, "a"));
  const half = Buffer.from(Array.from({ length: 64 * 64 }, (_, i) => (i % 64 < 28 ? 255 : 0)));
  await sharp(half, { raw: { width: 64, height: 64, channels: 1 } })
    .png()
    .toFile(join(folder, "m"));
  const unet = { config: { levels: [{}, {}] } } as unknown as UnetBase;
  let encoded = 0;
  const plain = arithmeticModel();
  const model = changed(plain, {
    unet,
    async encodeImage(image) {
      encoded++;
      return plain.encodeImage(image);
    },
  });
  const pictureModel = await contextWith(model).model("");
  const options = {
    items: [{ ...item, mask: "m" }],
    resolution: 64,
    flip: true,
    file: (sha256: string) => join(folder, sha256),
    cacheDir: folder,
  };
  const [first] = await prepareItems(pictureModel, options);
  const [straight, mirrored] = first!.latents;
  // Every eighth pixel of channel 0, on the sampler's scale of 0.5.
  expect(straight![0]).toBeCloseTo(0.5, 5);
  expect(mirrored![0]).toBeCloseTo(((255 - 4 * 63) / 127.5 - 1) * 0.5, 5);
  expect(Array.from(first!.masks![0]!.subarray(0, 8))).toEqual([1, 1, 1, 0.5, 0, 0, 0, 0]);
  expect(Array.from(first!.masks![1]!.subarray(0, 8))).toEqual([0, 0, 0, 0, 0.5, 1, 1, 1]);
  const map = await controlMapOf(first!, true);
  expect(map.shape).toEqual([1, 3, 64, 64]);
  expect(map.data[63]).toBe(1);
  expect(first!.timeIds).toEqual([64, 64, 0, 0, 64, 64]);
  expect(encoded).toBe(2);
  expect(readdirSync(join(folder, "latents"))).toHaveLength(2);
  const [again] = await prepareItems(pictureModel, options);
  expect(again!.latents).toEqual(first!.latents);
  expect(encoded).toBe(2);
});

test("a caption is encoded once", async () => {
  let calls = 0;
  const plain = arithmeticModel();
  const model = changed(plain, {
    async encodeText(args) {
      calls++;
      return plain.encodeText(args);
    },
  });
  const states = new CaptionStates(await contextWith(model).model(""));
  const first = await states.of("a toy");
  expect(await states.of("a toy")).toBe(first);
  expect(first.states.shape[0]).toBe(1);
  expect(calls).toBe(1);
});

test("held-out items are those of the dataset, else some of the last", () => {
  const items = Array.from({ length: 12 }, (_, i) => ({ ...item, caption: String(i) }));
  expect(splitItems(items).test.map(({ caption }) => caption)).toEqual(["1", "11"]);
  expect(splitItems(items.slice(0, 4)).test).toEqual([]);
  const marked = items.map((one, i): DatasetItem => ({ ...one, split: i === 0 ? "test" : "train" }));
  expect(splitItems(marked).test).toEqual([marked[0]]);
  expect(splitItems(marked).train).toHaveLength(11);
});

test("what chooses the weights is apart from what is scored, where the dataset is large enough or says so", () => {
  const named = (count: number, splitOf: (i: number) => DatasetItem["split"]) =>
    splitItems(Array.from({ length: count }, (_, i) => ({ ...item, caption: String(i), split: splitOf(i) })));
  const few = named(16, i => (i < 8 ? "train" : "test"));
  expect([few.train.length, few.validation, few.test.length]).toEqual([8, few.test, 8]);
  const many = named(24, i => (i < 8 ? "train" : "test"));
  expect([many.validation.length, many.test.length]).toEqual([8, 8]);
  expect(many.validation.some(one => many.test.includes(one))).toBe(false);
  const stated = named(5, i => (["train", "train", "validation", "test", "prior"] as const)[i]!);
  expect([stated.train, stated.validation, stated.test, stated.prior].map(list => list.map(({ caption }) => caption))).toEqual([
    ["0", "1"],
    ["2"],
    ["3"],
    ["4"],
  ]);
  const chosen = named(6, i => (i < 5 ? "train" : "validation"));
  expect([chosen.train.length, chosen.test]).toEqual([5, chosen.validation]);
});
