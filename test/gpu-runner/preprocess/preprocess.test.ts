import { readdirSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import sharp from "sharp";
import { describe, expect, test } from "vitest";
import { canny } from "../../../gpu-runner/preprocess/canny.ts";
import { type PreprocessorOptions, preprocess, preprocessors } from "../../../gpu-runner/preprocess/index.ts";
import type { RgbPixels } from "../../../gpu-runner/preprocess/picture.ts";
import { type ControlPreprocessor, controlPreprocessors } from "../../../shared/picture.ts";

const folder = join(import.meta.dirname, "../../goldens/preprocess");
const files = readdirSync(folder).filter(name => name.endsWith(".png"));

async function read(name: string): Promise<RgbPixels> {
  const image = sharp(join(folder, name)).toColourspace("srgb").removeAlpha();
  const { data, info } = await image.raw().toBuffer({ resolveWithObject: true });
  if (info.channels !== 3) throw new Error(`${name}: expected 3 channels, got ${info.channels}`);
  return { data, width: info.width, height: info.height };
}

const whites = ({ data }: RgbPixels) => data.filter((_, i) => i % 3 === 0).map(value => (value === 255 ? 1 : 0));

/** Intersection over union of the white pixels. */
function overlap(a: RgbPixels, b: RgbPixels): number {
  const [left, right] = [whites(a), whites(b)];
  const both = left.reduce((sum, value, i) => sum + (value & right[i]!), 0);
  const either = left.reduce((sum, value, i) => sum + (value | right[i]!), 0);
  return either === 0 ? 1 : both / either;
}

/** Greatest difference of a value. */
const distance = (a: RgbPixels, b: RgbPixels) => a.data.reduce((most, value, i) => Math.max(most, Math.abs(value - b.data[i]!)), 0);

describe("Canny edges are OpenCV's", () => {
  const results = files.filter(name => name.includes(".canny-"));

  test("of ten pictures", () => {
    expect(new Set(results.map(name => name.split(".")[0])).size).toBe(10);
  });

  test("which have edges", async () => {
    const edges = await Promise.all(results.map(async name => whites(await read(name)).reduce((sum, value) => sum + value, 0)));
    expect(edges.filter(count => count > 100).length).toBeGreaterThan(30);
  });

  test.each(results)("%s", async name => {
    const [, source, low, high, norm] = /^(.*)\.canny-([\d.]+)-([\d.]+)-(l1|l2)\.png$/.exec(name)!;
    const options = { lowThreshold: Number(low), highThreshold: Number(high), l2Gradient: norm === "l2" };
    expect(overlap(canny(await read(`${source}.png`), options), await read(name))).toBe(1);
  });
});

describe("other maps", () => {
  test.each(files.filter(name => name.includes(".scribble-")))("%s", async name => {
    const [source, setting] = name.split(".scribble-");
    const found = preprocess("scribble", await read(`${source}.png`), { threshold: Number.parseInt(setting!, 10) });
    expect(overlap(found, await read(name))).toBeGreaterThan(0.999);
  });

  test.each(files.filter(name => name.includes(".tile-")))("%s", async name => {
    const [source, setting] = name.split(".tile-");
    const found = preprocess("tile", await read(`${source}.png`), { factor: Number.parseInt(setting!, 10) });
    expect(distance(found, await read(name))).toBeLessThanOrEqual(1);
  });

  test.each(files.filter(name => name.includes(".blur-")))("%s", async name => {
    const [source, setting] = name.split(".blur-");
    const found = preprocess("blur", await read(`${source}.png`), { sigma: Number.parseInt(setting!, 10) });
    expect(distance(found, await read(name))).toBeLessThanOrEqual(1);
  });

  test.each(files.filter(name => name.includes(".mask-")))("%s", async name => {
    const [source, setting] = name.split(".mask-");
    const found = preprocess("mask", await read(`${source}.png`), {
      threshold: setting === "null.png" ? null : Number.parseInt(setting!, 10),
    });
    const map = await read(name);
    if (setting === "null.png") expect(distance(found, map)).toBeLessThanOrEqual(1);
    else expect(overlap(found, map)).toBeGreaterThan(0.999);
  });
});

const pictures: fc.Arbitrary<RgbPixels> = fc
  .record({ width: fc.integer({ min: 1, max: 20 }), height: fc.integer({ min: 1, max: 20 }) })
  .chain(({ width, height }) =>
    fc.uint8Array({ minLength: 3 * width * height, maxLength: 3 * width * height }).map(data => ({ data, width, height })),
  );

describe.each(controlPreprocessors)("%s", name => {
  test("keeps the size of any picture, and the picture as it was", () => {
    fc.assert(
      fc.property(pictures, picture => {
        const before = Uint8Array.from(picture.data);
        const { data, width, height } = preprocess(name, picture);
        expect([width, height, data.length]).toEqual([picture.width, picture.height, picture.data.length]);
        expect(picture.data).toEqual(before);
      }),
    );
  });

  test("finds nothing in a picture of one colour, or leaves it", () => {
    const picture = { data: new Uint8Array(3 * 12 * 9).fill(200), width: 12, height: 9 };
    const blank: Record<ControlPreprocessor, number> = { none: 200, canny: 0, scribble: 0, tile: 200, blur: 200, mask: 255 };
    expect(new Set(preprocess(name, picture).data)).toEqual(new Set([blank[name]]));
  });

  test("has defaults that it runs with", () => {
    const defaults: Partial<PreprocessorOptions[typeof name]> = preprocessors[name].defaults;
    const picture = { data: Uint8Array.from({ length: 3 * 64 }, (_, i) => (i * 37) % 256), width: 8, height: 8 };
    expect(preprocess(name, picture)).toEqual(preprocess(name, picture, defaults));
  });
});
