/** Copies of convolution weights as the gradient in a convolution's input reads them. */
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import type { FlippedWeight } from "../graph/onnx.ts";

/** Writes each weight [Cout, Cin, k, k] of fp32 as [Cin, Cout, k, k], height and width reversed, at its offset. Throws the file system's errors. */
export function writeFlipped(file: string, weights: readonly FlippedWeight[]): void {
  const target = openSync(file, "w");
  try {
    for (const { stored, shape, offset } of weights) {
      const values = flip(readWeight(stored.file, stored.offset, stored.byteLength), shape);
      writeSync(target, new Uint8Array(values.buffer), 0, values.byteLength, offset);
    }
  } finally {
    closeSync(target);
  }
}

function readWeight(file: string, offset: number, byteLength: number): Float32Array {
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

/** Reversing both axes of a kernel reverses its elements as they lie. */
function flip(values: Float32Array, [filters, channels, height, width]: readonly number[]): Float32Array {
  const area = height! * width!;
  const flipped = new Float32Array(values.length);
  for (let filter = 0; filter < filters!; filter++)
    for (let channel = 0; channel < channels!; channel++) {
      const from = (filter * channels! + channel) * area;
      const to = (channel * filters! + filter) * area;
      for (let i = 0; i < area; i++) flipped[to + i] = values[from + area - 1 - i]!;
    }
  return flipped;
}
