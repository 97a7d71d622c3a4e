/** Writes safetensors files, tensor by tensor, so that a file may be larger than memory. */
import { closeSync, fsyncSync, openSync, writeSync } from "node:fs";
import { dtypeBytes, type SafetensorsDtype, SafetensorsError } from "./safetensors.ts";

/** A memory page, and more than any provider's alignment: what is mapped is written so. */
export const pageBytes = 4096;

export interface TensorToWrite {
  name: string;
  dtype: SafetensorsDtype;
  shape: readonly number[];
  /** Little-endian contents, in one or more pieces; called once, when the tensor's turn comes. */
  data(): Iterable<Uint8Array>;
}

export interface WriteOptions {
  metadata?: Readonly<Record<string, string>>;
  /** The data block begins at a multiple of this many bytes (header padded with spaces, as the format allows). */
  align?: number;
}

/** Writes and syncs one file. On failure the partial file stays: the caller chose its name and removes it. */
export function writeSafetensors(path: string, tensors: readonly TensorToWrite[], options: WriteOptions = {}): void {
  const descriptor = openSync(path, "w");
  try {
    writeFully(descriptor, encodeHeader(tensors, options));
    for (const { name, dtype, shape, data } of tensors) {
      const expected = tensorBytes(dtype, shape);
      let written = 0;
      for (const piece of data()) {
        writeFully(descriptor, piece);
        written += piece.length;
      }
      if (written !== expected) throw new SafetensorsError(path, name, `${expected} bytes`, `${written} bytes`);
    }
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** The bytes of a typed array, without a copy. */
export function bytesOf(array: Float32Array | Float64Array | Int32Array | Uint16Array | Uint8Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function tensorBytes(dtype: SafetensorsDtype, shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, dtypeBytes[dtype]);
}

function encodeHeader(tensors: readonly TensorToWrite[], options: WriteOptions): Uint8Array {
  const header: Record<string, unknown> = Object.create(null);
  if (options.metadata) header.__metadata__ = options.metadata;
  let offset = 0;
  for (const { name, dtype, shape } of tensors) {
    const end = offset + tensorBytes(dtype, shape);
    header[name] = { dtype, shape, data_offsets: [offset, end] };
    offset = end;
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const align = options.align ?? 8;
  const dataStart = Math.ceil((8 + json.length) / align) * align;
  const out = new Uint8Array(dataStart).fill(0x20);
  new DataView(out.buffer).setBigUint64(0, BigInt(dataStart - 8), true);
  out.set(json, 8);
  return out;
}

function writeFully(descriptor: number, bytes: Uint8Array): void {
  let done = 0;
  while (done < bytes.length) done += writeSync(descriptor, bytes, done, Math.min(bytes.length - done, 1 << 30));
}
