/** Reads safetensors files strictly: see `shared/safetensors-header.ts` for what is refused. Tensor data is read on demand. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { FileError } from "../../shared/file-error.ts";
import {
  dtypeBytes,
  parseSafetensorsHeader,
  type SafetensorsDtype,
  type SafetensorsEntry,
  type SafetensorsHeader,
  safetensorsHeaderBytes,
} from "../../shared/safetensors-header.ts";
import { ModelError } from "./model-error.ts";

export { dtypeBytes, type SafetensorsDtype, type SafetensorsEntry };

/** A file that breaks the format, or lacks what was asked for. `key` is a tensor name or a part of the header. */
export class SafetensorsError extends ModelError {
  constructor(file: string, key: string, expected: string, got: string) {
    super(file, key, expected, got);
    this.name = "SafetensorsError";
  }
}

/** An open file; `close` it. Tensor data is read on demand, never as a whole. */
export class SafetensorsFile {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly entries: ReadonlyMap<string, SafetensorsEntry>;
  readonly #descriptor: number;

  constructor(path: string, descriptor: number, header: SafetensorsHeader) {
    this.path = path;
    this.#descriptor = descriptor;
    this.metadata = header.metadata;
    this.entries = header.entries;
  }

  /** Opens and checks a file. Throws SafetensorsError where it breaks the format, the system's error where it cannot be opened. */
  static open(path: string): SafetensorsFile {
    const descriptor = openSync(path, "r");
    try {
      return new SafetensorsFile(path, descriptor, readHeader(path, descriptor));
    } catch (error) {
      closeSync(descriptor);
      throw error;
    }
  }

  close(): void {
    closeSync(this.#descriptor);
  }

  entry(name: string): SafetensorsEntry {
    const found = this.entries.get(name);
    if (!found) throw new SafetensorsError(this.path, name, "a tensor of this name", "none");
    return found;
  }

  /** Bytes `start` .. `start + length` of one tensor (default: all of it). */
  readBytes(name: string, start = 0, length?: number): Uint8Array<ArrayBuffer> {
    const entry = this.entry(name);
    const count = length ?? entry.byteLength - start;
    if (start < 0 || count < 0 || start + count > entry.byteLength)
      throw new SafetensorsError(this.path, name, `a range within ${entry.byteLength} bytes`, `${start}..${start + count}`);
    const bytes = new Uint8Array(count);
    readFully(this.path, name, this.#descriptor, bytes, entry.offset + start);
    return bytes;
  }

  /** Whether a tensor holds floating-point numbers that `readFloat32` can give. */
  isFloat(name: string): boolean {
    return floatDtypes.includes(this.entry(name).dtype);
  }

  /** Elements `start` .. `start + count` of a floating-point tensor (default: all), widened or narrowed to fp32. */
  readFloat32(name: string, start = 0, count?: number): Float32Array<ArrayBuffer> {
    const { dtype, byteLength } = this.entry(name);
    const width = dtypeBytes[dtype];
    const bytes = this.readBytes(name, start * width, (count ?? byteLength / width - start) * width);
    const widen = floats[dtype];
    if (!widen) throw new SafetensorsError(this.path, name, floatDtypes.join(" or "), dtype);
    return widen(bytes);
  }
}

/** Opens a file for the length of one function. */
export function withSafetensors<T>(path: string, use: (file: SafetensorsFile) => T): T {
  const file = SafetensorsFile.open(path);
  try {
    return use(file);
  } finally {
    file.close();
  }
}

function readHeader(path: string, descriptor: number): SafetensorsHeader {
  const fileBytes = fstatSync(descriptor).size;
  const prefix = new Uint8Array(Math.min(8, fileBytes));
  readFully(path, "header length", descriptor, prefix, 0);
  try {
    const raw = new Uint8Array(safetensorsHeaderBytes(prefix, fileBytes));
    readFully(path, "header", descriptor, raw, 8);
    return parseSafetensorsHeader(raw, fileBytes);
  } catch (error) {
    if (error instanceof FileError) throw new SafetensorsError(path, error.key, error.expected, error.got);
    throw error;
  }
}

function readFully(path: string, key: string, descriptor: number, into: Uint8Array, position: number): void {
  let done = 0;
  while (done < into.length) {
    // One read call moves at most 2 GiB - 4 KiB on Linux.
    const read = readSync(descriptor, into, done, Math.min(into.length - done, 1 << 30), position + done);
    if (read === 0) throw new SafetensorsError(path, key, `${into.length} bytes`, `${done} bytes before the end of the file`);
    done += read;
  }
}

type Widen = (bytes: Uint8Array<ArrayBuffer>) => Float32Array<ArrayBuffer>;

const floats: Partial<Record<SafetensorsDtype, Widen>> = {
  F32: bytes => new Float32Array(bytes.buffer),
  F64: bytes => Float32Array.from(new Float64Array(bytes.buffer)),
  F16: bytes => {
    const table = halfTable();
    const halves = new Uint16Array(bytes.buffer);
    const out = new Float32Array(halves.length);
    for (let i = 0; i < out.length; i++) out[i] = table[halves[i]!]!;
    return out;
  },
  BF16: bytes => {
    const halves = new Uint16Array(bytes.buffer);
    const out = new Uint32Array(halves.length);
    for (let i = 0; i < out.length; i++) out[i] = halves[i]! << 16;
    return new Float32Array(out.buffer);
  },
};

/** Dtypes that `readFloat32` can give. */
export const floatDtypes = Object.keys(floats) as readonly SafetensorsDtype[];

const integers: Partial<Record<SafetensorsDtype, Widen>> = {
  BOOL: bytes => Float32Array.from(bytes),
  U8: bytes => Float32Array.from(bytes),
  I8: bytes => Float32Array.from(new Int8Array(bytes.buffer)),
  I16: bytes => Float32Array.from(new Int16Array(bytes.buffer)),
  I32: bytes => Float32Array.from(new Int32Array(bytes.buffer)),
  I64: bytes => Float32Array.from(new BigInt64Array(bytes.buffer), Number),
};

/** The elements of a tensor as fp32, from bytes that begin their own buffer; null for a dtype that is no number here. */
export function widenToFloat32(dtype: SafetensorsDtype, bytes: Uint8Array<ArrayBuffer>): Float32Array<ArrayBuffer> | null {
  return (floats[dtype] ?? integers[dtype])?.(bytes) ?? null;
}

let halves: Float32Array | undefined;

/** All 65,536 half-precision values; built at the first use. */
function halfTable(): Float32Array {
  if (halves) return halves;
  halves = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) halves[bits] = fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    else halves[bits] = sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
  }
  return halves;
}
