import sharp from "sharp";
import { expect, test } from "vitest";
import { drawPreview, fitPreviewMap } from "../../../gpu-runner/pipeline/preview.ts";
import { arithmeticModel, decoderWeights } from "./fixtures.ts";

test("the fit finds what a linear decoder does", async () => {
  const map = await fitPreviewMap(arithmeticModel());
  for (const [colour, weights] of decoderWeights.entries()) {
    for (const [channel, weight] of weights.entries()) expect(map[colour]![channel]!).toBeCloseTo(weight, 4);
  }
});

test("a preview is a small picture with one pixel a latent", async () => {
  const map = [
    [1, 0],
    [-1, 0],
    [0, 0.5],
  ];
  const url = await drawPreview(
    { model: { decodePreview: null }, previewMap: map },
    Float32Array.of(...new Array<number>(128).fill(-0.8), ...new Array<number>(128).fill(0.8)),
    [1, 1, 16, 16],
  );
  const { data, info } = await sharp(Buffer.from(url.replace("data:image/webp;base64,", ""), "base64"))
    .raw()
    .toBuffer({ resolveWithObject: true });
  expect(info).toMatchObject({ width: 16, height: 16, channels: 3 });
  const near = (expected: number[]) => expected.map(value => expect.closeTo(value, -1.3));
  expect(Array.from(data.subarray(0, 3))).toEqual(near([25, 230, 191]));
  expect(Array.from(data.subarray(-3))).toEqual(near([230, 25, 191]));
});
