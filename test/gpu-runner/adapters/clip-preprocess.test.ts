/** Pictures as CLIP reads them, against transformers over Pillow. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { resizePillow } from "../../../gpu-runner/adapters/ip-adapter/pillow-resize.ts";
import { clipPreprocessing, toPixelValues } from "../../../gpu-runner/adapters/ip-adapter/preprocess.ts";
import { withSafetensors } from "../../../gpu-runner/weights/safetensors.ts";
import { goldens } from "../support/model-folder.ts";
import { temporaryFolder } from "../support/temporary.ts";

const reference = join(goldens, "../image-adapters/clip-preprocess.safetensors");

describe("transformers' CLIPImageProcessor", () => {
  // Sizes shrink by little, shrink by far, grow, and stay. The pixels are equal; only the arithmetic after them is fp32 there. Pillow 13,
  // which made the reference, takes the height first where a picture is tall, older ones never: a pixel may differ by one of 255 steps.
  test.each([
    ["down", 2e-6],
    ["far-down", 2e-6],
    ["up", 2e-6],
    ["exact", 2e-6],
    ["tall", 1 / 255 / 0.26],
  ])("%s: equal but for rounding", (name, tolerance) => {
    withSafetensors(reference, file => {
      const [height, width] = file.entry(`${name}.picture`).shape as [number, number];
      const want = file.readFloat32(`${name}.pixel_values`);
      const { shape } = file.entry(`${name}.pixel_values`);
      const picture = { data: Uint8Array.from(file.readFloat32(`${name}.picture`)), width, height };
      const got = toPixelValues(picture, clipPreprocessing(join(goldens, "no-such.json"), shape[2]!));
      expect(got.shape).toEqual(shape);
      expect(Math.max(...got.data.map((value, i) => Math.abs(value - want[i]!)))).toBeLessThan(tolerance);
    });
  });
});

test("preprocessor_config.json decides on sizes, crops and scales", () => {
  const file = join(temporaryFolder(), "preprocessor_config.json");
  writeFileSync(
    file,
    JSON.stringify({ size: { shortest_edge: 4 }, crop_size: { height: 2, width: 6 }, do_normalize: false, image_mean: [0.5, 0.5, 0.5] }),
  );
  const preprocessing = clipPreprocessing(file, 224);
  const values = toPixelValues({ data: new Uint8Array(4 * 4 * 3).fill(255), width: 4, height: 4 }, preprocessing);
  expect(values.shape).toEqual([1, 3, 2, 6]);
  // Beyond the picture's sides there is nothing.
  expect([...values.data.slice(0, 6)]).toEqual([0, 1, 1, 1, 1, 0]);
  writeFileSync(file, JSON.stringify({ resample: 2 }));
  expect(() => clipPreprocessing(file, 224)).toThrow("resample: expected 3, got 2");
});

test("a picture of one colour keeps it at any size", () => {
  const { data } = resizePillow({ data: new Uint8Array(7 * 5 * 3).fill(77), width: 7, height: 5 }, 12, 3);
  expect(new Set(data)).toEqual(new Set([77]));
  expect(data.length).toBe(12 * 3 * 3);
});

test("sizes beyond any encoder's, and a picture that would become one, are refused", () => {
  const file = join(temporaryFolder(), "preprocessor_config.json");
  writeFileSync(file, JSON.stringify({ size: { shortest_edge: 1_000_000 } }));
  expect(() => clipPreprocessing(file, 224)).toThrow("size");
  writeFileSync(file, JSON.stringify({ crop_size: { height: 100_000, width: 100_000 } }));
  expect(() => clipPreprocessing(file, 224)).toThrow("crop_size");
  const strip = { data: new Uint8Array(3 * 100_000), width: 100_000, height: 1 };
  expect(() => toPixelValues(strip, clipPreprocessing("", 224))).toThrow(RangeError);
});
