/** Reads tensors that otherwise are only mapped. */
import { closeSync, openSync, readSync } from "node:fs";
import type { TensorF32 } from "../components.ts";
import type { StoredTensor } from "../graph/ir.ts";

/** All of a stored tensor; the system's error where its file is gone. */
export function readStored({ file, offset, byteLength, shape }: StoredTensor): TensorF32 {
  const data = new Float32Array(byteLength / 4);
  const bytes = new Uint8Array(data.buffer);
  const descriptor = openSync(file, "r");
  try {
    for (let done = 0; done < byteLength; ) {
      const read = readSync(descriptor, bytes, done, Math.min(byteLength - done, 1 << 30), offset + done);
      if (read === 0) throw new RangeError(`${file}: expected ${byteLength} bytes at ${offset}, got ${done}`);
      done += read;
    }
  } finally {
    closeSync(descriptor);
  }
  return { data, shape };
}
