import { describe, expect, test } from "vitest";
import { blurMask, composite, cropAround, fillFromAround } from "../../../gpu-runner/pipeline/mask.ts";

const size = 32;
/** 1 where the function says so. */
const maskOf = (inside: (x: number, y: number) => boolean) =>
  Float32Array.from({ length: size * size }, (_, i) => (inside(i % size, Math.floor(i / size)) ? 1 : 0));
const rightHalf = maskOf(x => x >= 16);

test("a blurred edge is a half where the edge was, and the far ends stay", () => {
  const blurred = blurMask(rightHalf, size, size, 3);
  const row = Array.from(blurred.subarray(16 * size, 17 * size));
  expect((row[15]! + row[16]!) / 2).toBeCloseTo(0.5, 1);
  expect([row[0], row[31]]).toEqual([0, 1]);
  // Gauss: one deviation beyond the edge.
  expect(row[18]!).toBeCloseTo(0.8, 1);
  expect(blurMask(rightHalf, size, size, 0)).toBe(rightHalf);
});

describe("the crop around a mask", () => {
  const small = maskOf((x, y) => x >= 10 && x < 14 && y >= 20 && y < 22);

  test("has the picture's proportions and the padding", () => {
    expect(cropAround(small, size, size, 2)).toEqual({ left: 8, top: 17, width: 8, height: 8 });
  });

  test("stays within the picture", () => {
    expect(
      cropAround(
        maskOf((x, y) => x === 31 && y === 0),
        size,
        size,
        4,
      ),
    ).toEqual({ left: 27, top: 0, width: 5, height: 5 });
    expect(cropAround(small, size, size, 1000)).toEqual({ left: 0, top: 0, width: size, height: size });
  });

  test("is none where nothing is masked", () => {
    expect(
      cropAround(
        maskOf(() => false),
        size,
        size,
        4,
      ),
    ).toBeNull();
  });
});

test("a gap takes the colours around it", () => {
  const data = Uint8Array.from({ length: 3 * size * size }, (_, i) => (Math.floor(i / 3) % size < 16 ? 200 : 40));
  const hole = maskOf((x, y) => Math.abs(x - 8) < 4 && Math.abs(y - 16) < 4);
  const damaged = data.map((value, i) => (hole[Math.floor(i / 3)] === 1 ? 0 : value));
  const filled = fillFromAround({ data: damaged, width: size, height: size }, hole);
  const at = (x: number, y: number) => filled.data[3 * (y * size + x)]!;
  expect(at(8, 16)).toBeGreaterThan(140);
  expect(at(5, 16)).toBeGreaterThan(at(11, 16) - 1);
  expect([at(20, 16), at(1, 1)]).toEqual([40, 200]);
});

test("a composite mixes by the mask", () => {
  const mixed = composite(Uint8Array.of(0, 0, 0, 100, 100, 100), Uint8Array.of(200, 200, 200, 200, 200, 200), Float32Array.of(0.5, 0));
  expect(Array.from(mixed)).toEqual([100, 100, 100, 100, 100, 100]);
});
