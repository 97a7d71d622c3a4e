/** What holds for any picture; that the bytes are Pillow's is shown by the cases of test/goldens/passes. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { cover, fitInto } from "../../../gpu-runner/pipeline/fit-picture.ts";
import { gaussianBlur } from "../../../gpu-runner/pipeline/gaussian-blur.ts";
import { resample } from "../../../gpu-runner/pipeline/resample.ts";

const side = fc.integer({ min: 1, max: 40 });
const byte = fc.integer({ min: 0, max: 255 });
const even = side.map(value => 2 * value);

test("one colour stays that colour at every size, fitted, covering, blurred", () => {
  fc.assert(
    fc.property(side, side, even, even, fc.tuple(byte, byte, byte), (width, height, newWidth, newHeight, colour) => {
      const flat = (count: number) => Uint8Array.from({ length: 3 * count }, (_, i) => colour[i % 3]!);
      const picture = { data: flat(width * height), width, height };
      const expected = { data: flat(newWidth * newHeight), width: newWidth, height: newHeight };
      expect(resample(picture, 3, newWidth, newHeight)).toEqual(expected);
      expect(fitInto(picture, 3, newWidth, newHeight)).toEqual(expected);
      expect(cover(picture, 3, newWidth, newHeight)).toEqual(expected);
    }),
  );
  fc.assert(
    fc.property(side, side, byte, fc.double({ min: 0, max: 300, noNaN: true }), (width, height, value, deviation) => {
      const plane = new Uint8Array(width * height).fill(value);
      expect(gaussianBlur(plane, width, height, deviation)).toEqual(plane);
    }),
  );
});

test("a picture of the size itself is left alone", () => {
  fc.assert(
    fc.property(side, side, fc.infiniteStream(byte), (width, height, bytes) => {
      const [...values] = bytes.take(width * height);
      const picture = { data: Uint8Array.from(values), width, height };
      for (const same of [resample, fitInto, cover]) expect(same(picture, 1, width, height)).toEqual(picture);
    }),
  );
});

test("an edge is blurred to the normal distribution", () => {
  const row = Uint8Array.from({ length: 64 }, (_, x) => (x < 32 ? 0 : 255));
  const blurred = gaussianBlur(row, 64, 1, 4);
  // One deviation beyond the edge, and two; between pixels 35 and 36, 39 and 40.
  expect((blurred[35]! + blurred[36]!) / 510).toBeCloseTo(0.841, 1);
  expect((blurred[39]! + blurred[40]!) / 510).toBeCloseTo(0.977, 1);
});
