/**
 * A strict reader of safetensors files (https://github.com/huggingface/safetensors#format):
 * u64 header length, JSON header, one contiguous block of tensors. Files come from strangers, so every length is bounded
 * before it is used, and the block must be covered exactly: no gap, overlap, duplicate or missing byte.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { z } from "zod";
import { findDuplicateKey } from "./json-duplicates.ts";
import { ModelError } from "./model-error.ts";

/** Bytes of one element, by the format's dtype names. Sub-byte dtypes are refused: nothing here can use them. */
export const dtypeBytes = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;
export type SafetensorsDtype = keyof typeof dtypeBytes;

export interface SafetensorsEntry {
  name: string;
  dtype: SafetensorsDtype;
  shape: readonly number[];
  /** Absolute, in bytes from the start of the file. */
  offset: number;
  byteLength: number;
}

const maxHeaderBytes = 100_000_000;
const maxTensors = 100_000;
const maxRank = 16;

/** A file that breaks the format, or lacks what was asked for. `key` is a tensor name or a part of the header. */
export class SafetensorsError extends ModelError {
  constructor(file: string, key: string, expected: string, got: string) {
    super(file, key, expected, got);
    this.name = "SafetensorsError";
  }
}

const size = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const entrySchema = z.strictObject({
  dtype: z.enum(Object.keys(dtypeBytes) as [SafetensorsDtype, ...SafetensorsDtype[]]),
  shape: z.array(size).max(maxRank),
  data_offsets: z.tuple([size, size]),
});
const metadataSchema = z.record(z.string(), z.string());

/** An open file; `close` it. Tensor data is read on demand, never as a whole. */
export class SafetensorsFile {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly entries: ReadonlyMap<string, SafetensorsEntry>;
  readonly #descriptor: number;

  constructor(path: string, descriptor: number, header: Header) {
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
    return toFloat32[this.entry(name).dtype] !== undefined;
  }

  /** Elements `start` .. `start + count` of a floating-point tensor (default: all), widened or narrowed to fp32. */
  readFloat32(name: string, start = 0, count?: number): Float32Array<ArrayBuffer> {
    const { dtype, byteLength } = this.entry(name);
    const width = dtypeBytes[dtype];
    const bytes = this.readBytes(name, start * width, (count ?? byteLength / width - start) * width);
    const convert = toFloat32[dtype];
    if (!convert) throw new SafetensorsError(this.path, name, Object.keys(toFloat32).join(" or "), dtype);
    return convert(bytes);
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

interface Header {
  metadata: Readonly<Record<string, string>>;
  entries: ReadonlyMap<string, SafetensorsEntry>;
}

function readHeader(path: string, descriptor: number): Header {
  const fail = (key: string, expected: string, got: string): never => {
    throw new SafetensorsError(path, key, expected, got);
  };
  const fileBytes = fstatSync(descriptor).size;
  if (fileBytes < 10) fail("file", "at least 10 bytes", `${fileBytes} bytes`);
  const prefix = new Uint8Array(8);
  readFully(path, "header length", descriptor, prefix, 0);
  const headerBytes = new DataView(prefix.buffer).getBigUint64(0, true);
  const bound = Math.min(maxHeaderBytes, fileBytes - 8);
  if (headerBytes < 2n || headerBytes > BigInt(bound)) fail("header length", `2 to ${bound}`, String(headerBytes));
  const raw = new Uint8Array(Number(headerBytes));
  readFully(path, "header", descriptor, raw, 8);
  const { tensors, metadata } = parseHeader(path, raw);
  const dataStart = 8 + raw.length;
  const entries = new Map<string, SafetensorsEntry>();
  for (const [name, value] of tensors) entries.set(name, parseEntry(path, name, value, dataStart));
  requireExactCover(path, [...entries.values()], dataStart, fileBytes);
  return { metadata, entries };
}

function parseHeader(path: string, raw: Uint8Array): { tensors: [string, unknown][]; metadata: Record<string, string> } {
  if (raw[0] !== 0x7b) throw new SafetensorsError(path, "header", 'JSON that begins with "{"', `byte ${raw[0]}`);
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(raw);
    json = JSON.parse(text);
  } catch (error) {
    throw new SafetensorsError(path, "header", "JSON in UTF-8", error instanceof Error ? error.message : String(error));
  }
  const duplicate = findDuplicateKey(text);
  if (duplicate !== null) throw new SafetensorsError(path, duplicate, "a key that stands once", "a duplicate");
  const object = z.record(z.string(), z.unknown()).parse(json);
  const names = Object.keys(object).filter(name => name !== "__metadata__");
  if (names.length > maxTensors) throw new SafetensorsError(path, "header", `at most ${maxTensors} tensors`, String(names.length));
  const metadata = metadataSchema.optional().safeParse(Object.hasOwn(object, "__metadata__") ? object.__metadata__ : undefined);
  if (!metadata.success) throw new SafetensorsError(path, "__metadata__", "an object of strings", describe(object.__metadata__));
  return { tensors: names.map(name => [name, object[name]]), metadata: metadata.data ?? {} };
}

function parseEntry(path: string, name: string, value: unknown, dataStart: number): SafetensorsEntry {
  const parsed = entrySchema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new SafetensorsError(
      path,
      name,
      "dtype, shape and data_offsets",
      `${issue?.path.join(".")} ${issue?.message}: ${describe(value)}`,
    );
  }
  const { dtype, shape, data_offsets } = parsed.data;
  const [begin, end] = data_offsets;
  const bytes = shape.reduce((product, dim) => product * dim, dtypeBytes[dtype]);
  // A product past 2^53 is inexact, and some zero dim may hide it again: both are refused by the comparison below or here.
  if (!Number.isSafeInteger(shape.reduce((product, dim) => product * Math.max(dim, 1), dtypeBytes[dtype])))
    throw new SafetensorsError(path, name, "a size below 2^53 bytes", `shape [${shape}]`);
  if (end - begin !== bytes)
    throw new SafetensorsError(path, name, `${bytes} bytes for ${dtype} [${shape}]`, `data_offsets ${begin}..${end}`);
  return { name, dtype, shape, offset: dataStart + begin, byteLength: bytes };
}

function requireExactCover(path: string, entries: SafetensorsEntry[], dataStart: number, fileBytes: number): void {
  const ordered = entries.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let end = dataStart;
  for (const { name, offset, byteLength } of ordered) {
    if (offset !== end)
      throw new SafetensorsError(path, name, `data from byte ${end - dataStart} on (no gap or overlap)`, String(offset - dataStart));
    end = offset + byteLength;
  }
  if (end !== fileBytes) throw new SafetensorsError(path, "file", `${end} bytes as its header says`, `${fileBytes} bytes`);
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

function describe(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 120 ? `${text.slice(0, 120)}…` : text;
}

type Widen = (bytes: Uint8Array<ArrayBuffer>) => Float32Array<ArrayBuffer>;

const toFloat32: Partial<Record<SafetensorsDtype, Widen>> = {
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
