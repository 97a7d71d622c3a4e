/**
 * The header of safetensors files (https://github.com/huggingface/safetensors#format): u64 header length, JSON header, one
 * contiguous block of tensors. Files come from strangers, so every length is bounded before it is used, and the block must be
 * covered exactly: no gap, overlap, duplicate or missing byte.
 */
import { z } from "zod";
import { FileError, shorten } from "./file-error.ts";
import { findDuplicateKey } from "./json-duplicates.ts";

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

const size = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const entrySchema = z.strictObject({
  dtype: z.enum(Object.keys(dtypeBytes) as [SafetensorsDtype, ...SafetensorsDtype[]]),
  shape: z.array(size).max(maxRank),
  data_offsets: z.tuple([size, size]),
});
const metadataSchema = z.record(z.string(), z.string());

export interface SafetensorsHeader {
  metadata: Readonly<Record<string, string>>;
  entries: ReadonlyMap<string, SafetensorsEntry>;
}

/** Bytes of the JSON header, from the file's first 8 bytes and its size. Throws FileError. */
export function safetensorsHeaderBytes(prefix: Uint8Array, fileBytes: number): number {
  if (fileBytes < 10 || prefix.length < 8) throw new FileError("file", "at least 10 bytes", `${fileBytes} bytes`);
  const headerBytes = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  const bound = Math.min(maxHeaderBytes, fileBytes - 8);
  if (headerBytes < 2n || headerBytes > BigInt(bound)) throw new FileError("header length", `2 to ${bound}`, String(headerBytes));
  return Number(headerBytes);
}

/** `raw` is the JSON header, which begins at byte 8 of a file of `fileBytes`. Throws FileError. */
export function parseSafetensorsHeader(raw: Uint8Array, fileBytes: number): SafetensorsHeader {
  const { tensors, metadata } = parseJsonHeader(raw);
  const dataStart = 8 + raw.length;
  const entries = new Map<string, SafetensorsEntry>();
  for (const [name, value] of tensors) entries.set(name, parseEntry(name, value, dataStart));
  requireExactCover([...entries.values()], dataStart, fileBytes);
  return { metadata, entries };
}

function parseJsonHeader(raw: Uint8Array): { tensors: [string, unknown][]; metadata: Record<string, string> } {
  if (raw[0] !== 0x7b) throw new FileError("header", 'JSON that begins with "{"', `byte ${raw[0]}`);
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: false }).decode(raw);
    json = JSON.parse(text);
  } catch (error) {
    throw new FileError("header", "JSON in UTF-8", error instanceof Error ? error.message : String(error));
  }
  const duplicate = findDuplicateKey(text);
  if (duplicate !== null) throw new FileError(duplicate, "a key that stands once", "a duplicate");
  const object = z.record(z.string(), z.unknown()).parse(json);
  const names = Object.keys(object).filter(name => name !== "__metadata__");
  if (names.length > maxTensors) throw new FileError("header", `at most ${maxTensors} tensors`, String(names.length));
  const metadata = metadataSchema.optional().safeParse(Object.hasOwn(object, "__metadata__") ? object.__metadata__ : undefined);
  if (!metadata.success) throw new FileError("__metadata__", "an object of strings", describe(object.__metadata__));
  return { tensors: names.map(name => [name, object[name]]), metadata: metadata.data ?? {} };
}

function parseEntry(name: string, value: unknown, dataStart: number): SafetensorsEntry {
  const parsed = entrySchema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new FileError(name, "dtype, shape and data_offsets", `${issue?.path.join(".")} ${issue?.message}: ${describe(value)}`);
  }
  const { dtype, shape, data_offsets } = parsed.data;
  const [begin, end] = data_offsets;
  const bytes = shape.reduce((product, dim) => product * dim, dtypeBytes[dtype]);
  // A product past 2^53 is inexact, and some zero dim may hide it again: both are refused by the comparison below or here.
  if (!Number.isSafeInteger(shape.reduce((product, dim) => product * Math.max(dim, 1), dtypeBytes[dtype])))
    throw new FileError(name, "a size below 2^53 bytes", `shape [${shape}]`);
  if (end - begin !== bytes) throw new FileError(name, `${bytes} bytes for ${dtype} [${shape}]`, `data_offsets ${begin}..${end}`);
  return { name, dtype, shape, offset: dataStart + begin, byteLength: bytes };
}

function requireExactCover(entries: SafetensorsEntry[], dataStart: number, fileBytes: number): void {
  const ordered = entries.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let end = dataStart;
  for (const { name, offset, byteLength } of ordered) {
    if (offset !== end) throw new FileError(name, `data from byte ${end - dataStart} on (no gap or overlap)`, String(offset - dataStart));
    end = offset + byteLength;
  }
  if (end !== fileBytes) throw new FileError("file", `${end} bytes as its header says`, `${fileBytes} bytes`);
}

function describe(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return shorten(text, 120);
}
