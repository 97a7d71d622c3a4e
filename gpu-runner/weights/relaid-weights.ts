/** Copies of convolution weights in the layouts that a training's convolutions read, in files of the cache that its sessions share. */
import { createHash } from "node:crypto";
import { closeSync, openSync, readSync, realpathSync, statSync, writeFileSync } from "node:fs";
import type { StoredTensor } from "../graph/ir.ts";
import type { RelaidWeight, WeightLayout } from "../graph/onnx.ts";
import { deriveFile } from "./derived-files.ts";

/**
 * The file that holds each of the weights, made if need be; `alive` is called after each.
 * Throws CacheError where the cache cannot be written, and the file system's errors.
 */
export function placeRelaid(weights: readonly RelaidWeight[], cacheDir: string, alive?: () => void): string[] {
  return weights.map(weight => {
    const file = deriveFile(cacheDir, "weights", `${nameOf(weight)}.relaid`, temporary => {
      const { stored, shape, layout } = weight;
      const values = relay(readWeight(stored), shape, layout);
      writeFileSync(temporary, new Uint8Array(values.buffer));
    });
    alive?.();
    return file;
  });
}

/** By the state of its file, its place in that, and what becomes of it. */
function nameOf({ stored, shape, layout }: RelaidWeight): string {
  const path = realpathSync(stored.file);
  const { size, mtimeMs, ino } = statSync(path);
  const content = [path, size, mtimeMs, ino, stored.offset, stored.byteLength, shape, layout.flipped, layout.block];
  return createHash("sha256").update(JSON.stringify(content)).digest("hex");
}

function readWeight({ file, offset, byteLength }: StoredTensor): Float32Array {
  const source = openSync(file, "r");
  try {
    const values = new Float32Array(byteLength / 4);
    const got = readSync(source, new Uint8Array(values.buffer), 0, byteLength, offset);
    if (got !== byteLength) throw new Error(`${file}: expected ${byteLength} bytes at ${offset}, got ${got}`);
    return values;
  } finally {
    closeSync(source);
  }
}

/** The elements of [Cout, Cin, k, k] in another layout. Reversing both axes of a kernel reverses its elements as they lie. */
export function relay(values: Float32Array, [filters, channels, height, width]: readonly number[], layout: WeightLayout): Float32Array {
  const { flipped, block } = layout;
  const area = height! * width!;
  const blocks = (flipped ? filters! : channels!) / block;
  const relaid = new Float32Array(values.length);
  for (let filter = 0; filter < filters!; filter++)
    for (let channel = 0; channel < channels!; channel++) {
      const [to, from] = flipped ? [channel, filter] : [filter, channel];
      const [outer, inner] = [Math.floor(to / block) * blocks + Math.floor(from / block), (from % block) * block + (to % block)];
      const source = (filter * channels! + channel) * area;
      for (let i = 0; i < area; i++)
        relaid[(outer * area + i) * block * block + inner] = values[flipped ? source + area - 1 - i : source + i]!;
    }
  return relaid;
}
