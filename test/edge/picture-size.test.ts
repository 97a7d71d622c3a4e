import { describe, expect, it } from "vitest";
import { pictureSize } from "../../edge/picture-size.ts";
import { pngFile } from "./file-bytes.ts";

const ascii = (text: string) => [...text].map(character => character.charCodeAt(0));
const riff = (chunk: string, ...body: number[]) =>
  new Uint8Array([...ascii("RIFF"), 0, 0, 0, 0, ...ascii("WEBP"), ...ascii(chunk), 0, 0, 0, 0, ...body]);

describe("pictureSize", () => {
  it.each<[string, Uint8Array, number, number]>([
    ["png", pngFile(640, 480), 640, 480],
    // A comment of 4 bytes, then a frame header: length, precision, height, width.
    ["jpeg", new Uint8Array([0xff, 0xd8, 0xff, 0xfe, 0, 4, 1, 2, 0xff, 0xc0, 0, 11, 8, 1, 0xe0, 2, 0x80]), 640, 480],
    ["progressive jpeg", new Uint8Array([0xff, 0xd8, 0xff, 0xc4, 0, 2, 0xff, 0xc2, 0, 11, 8, 0, 16, 0, 32]), 32, 16],
    ["lossy webp", riff("VP8 ", 0, 0, 0, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0xe0, 0x01), 640, 480],
    ["lossless webp", riff("VP8L", 0x2f, 0x7f, 0xc2, 0x77, 0x00), 640, 480],
    ["extended webp", riff("VP8X", 0, 0, 0, 0, 0x7f, 0x02, 0, 0xdf, 0x01, 0), 640, 480],
  ])("reads %s", (_, file, width, height) => {
    expect(pictureSize(file)).toEqual({ width, height });
  });

  it.each<[string, Uint8Array]>([
    ["a png that ends early", pngFile(640, 480).slice(0, 20)],
    ["a png of no width", pngFile(0, 480)],
    ["a jpeg whose frame header comes later", new Uint8Array([0xff, 0xd8, 0xff, 0xe1, 0xff, 0xff, 0, 0])],
    ["a jpeg without segments", new Uint8Array([0xff, 0xd8, 0, 0, 0, 0, 0, 0])],
    ["an unknown webp", riff("VP9 ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)],
  ])("says nothing of %s", (_, file) => {
    expect(pictureSize(file)).toBeUndefined();
  });
});
