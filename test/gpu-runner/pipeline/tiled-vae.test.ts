import { expect, test } from "vitest";
import type { DiffusionModel, TensorF32 } from "../../../gpu-runner/components.ts";
import { resizeLatents } from "../../../gpu-runner/pipeline/latents.ts";
import { tiledDecode, tiledEncode } from "../../../gpu-runner/pipeline/tiled-vae.ts";
import { arithmeticModel } from "./fixtures.ts";

const tiling = { latentSize: 4, pixelSize: 32, overlap: 0.25 };
const ramp = (shape: readonly [number, number, number, number], scale: number): TensorF32 => ({
  shape,
  data: Float32Array.from({ length: shape[0] * shape[1] * shape[2] * shape[3] }, (_, i) => Math.sin(i * scale)),
});

/** The arithmetic model works pixel by pixel, so its tiles fit together without a seam. */
function counted(sizes: (readonly number[])[]): DiffusionModel {
  const model = arithmeticModel();
  const { decodeLatents, encodeImage } = model;
  return Object.assign(model, {
    decodeLatents: (latents: TensorF32) => {
      sizes.push(latents.shape.slice(2));
      return decodeLatents(latents);
    },
    encodeImage: (image: TensorF32) => {
      sizes.push(image.shape.slice(2));
      return encodeImage(image);
    },
  });
}

test("decoding in tiles gives what decoding the whole gives, from tiles no greater than asked for", async () => {
  const sizes: (readonly number[])[] = [];
  const latents = ramp([2, 4, 7, 9], 0.3);
  const [tiled, whole] = [await tiledDecode(counted(sizes), latents, tiling), await arithmeticModel().decodeLatents(latents)];
  expect(sizes).toHaveLength(9);
  expect(sizes.every(([height, width]) => height! <= 4 && width! <= 4)).toBe(true);
  expect(tiled.shape).toEqual(whole.shape);
  for (const [i, value] of tiled.data.entries()) expect(Math.abs(value - whole.data[i]!)).toBeLessThan(1e-5);
});

test("so does encoding, and what fits into one tile is not cut", async () => {
  const sizes: (readonly number[])[] = [];
  const image = ramp([1, 3, 56, 72], 0.01);
  const [tiled, whole] = [await tiledEncode(counted(sizes), image, tiling), await arithmeticModel().encodeImage(image)];
  expect(sizes).toHaveLength(9);
  expect(tiled.mean.shape).toEqual(whole.mean.shape);
  for (const [i, value] of tiled.mean.data.entries()) expect(Math.abs(value - whole.mean.data[i]!)).toBeLessThan(1e-6);
  expect(tiled.logvar.data.every(value => value === -30)).toBe(true);
  sizes.length = 0;
  await tiledEncode(counted(sizes), ramp([1, 3, 32, 32], 0.01), tiling);
  expect(sizes).toEqual([[32, 32]]);
});

test("enlarged latents lie between their neighbours", () => {
  expect(Array.from(resizeLatents(Float32Array.of(0, 1), [1, 2], [1, 4]))).toEqual([0, 0.25, 0.75, 1]);
  expect(Array.from(resizeLatents(Float32Array.of(1, 2, 3, 4), [2, 2], [2, 2]))).toEqual([1, 2, 3, 4]);
});
