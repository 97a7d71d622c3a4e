/**
 * The directory of a zip file whose entries are stored, not compressed, as torch writes them (PKWARE's APPNOTE.TXT, 4.3). Every
 * length is checked against the file, and no two entries overlap, so what is read is never more than what the file has.
 */
import { FileError } from "../file-error.ts";
import type { ByteSource } from "./byte-source.ts";

export interface StoredEntry {
  name: string;
  byteLength: number;
  /** Where its own header begins, and where the next entry's does. */
  headerOffset: number;
  limit: number;
}

const endRecordBytes = 22;
const localHeaderBytes = 30;
const maxCommentBytes = 65_535;
const maxDirectoryBytes = 4 << 20;
const maxEntries = 20_000;

/** Throws FileError. */
export async function readStoredZip(source: ByteSource): Promise<ReadonlyMap<string, StoredEntry>> {
  const { count, offset, byteLength } = await readEndRecord(source);
  const view = viewOf(await source.read(offset, byteLength));
  const headers: Omit<StoredEntry, "limit">[] = [];
  let position = 0;
  for (let i = 0; i < count; i++) {
    const { end, ...header } = readDirectoryEntry(view, position, i);
    position = end;
    headers.push(header);
  }
  const entries = new Map<string, StoredEntry>();
  headers.sort((a, b) => a.headerOffset - b.headerOffset);
  for (const [i, header] of headers.entries()) {
    const limit = headers[i + 1]?.headerOffset ?? offset;
    if (entries.has(header.name)) throw new FileError(header.name, "an entry that stands once", "a duplicate");
    if (header.headerOffset + localHeaderBytes + header.byteLength > limit) throw overlap(header);
    entries.set(header.name, { ...header, limit });
  }
  return entries;
}

async function readEndRecord(source: ByteSource): Promise<{ count: number; offset: number; byteLength: number }> {
  const tail = Math.min(source.size, endRecordBytes + maxCommentBytes);
  const view = viewOf(await source.read(source.size - tail, tail));
  for (let at = tail - endRecordBytes; at >= 0; at--) {
    if (view.getUint32(at, true) !== 0x06054b50 || view.getUint16(at + 20, true) !== tail - endRecordBytes - at) continue;
    const [count, byteLength, offset] = [view.getUint16(at + 10, true), view.getUint32(at + 12, true), view.getUint32(at + 16, true)];
    if (view.getUint16(at + 4, true) !== 0 || view.getUint16(at + 6, true) !== 0)
      throw new FileError("zip directory", "one volume", "a part of several");
    if (count > maxEntries) throw new FileError("zip directory", `at most ${maxEntries} entries, no zip64`, String(count));
    if (byteLength > maxDirectoryBytes || offset + byteLength > source.size)
      throw new FileError("zip directory", "a directory within the file", `${byteLength} bytes from ${offset} on`);
    return { count, offset, byteLength };
  }
  throw new FileError("file", "the end record of a zip file", "none");
}

function readDirectoryEntry(view: DataView, at: number, index: number): Omit<StoredEntry, "limit"> & { end: number } {
  const place = `zip directory entry ${index}`;
  if (at + 46 > view.byteLength || view.getUint32(at, true) !== 0x02014b50) throw new FileError(place, "a header", "none");
  const [flags, method] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true)];
  const [packed, byteLength] = [view.getUint32(at + 20, true), view.getUint32(at + 24, true)];
  const [nameLength, extraLength, commentLength] = [28, 30, 32].map(field => view.getUint16(at + field, true)) as [number, number, number];
  const end = at + 46 + nameLength + extraLength + commentLength;
  if (end > view.byteLength) throw new FileError(place, "a header within the directory", `${end} of ${view.byteLength} bytes`);
  const name = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + at + 46, nameLength));
  if (method !== 0 || packed !== byteLength) throw new FileError(name, "an entry that is stored as it is", `compression method ${method}`);
  if (flags & 1) throw new FileError(name, "an entry in the clear", "an encrypted one");
  return { name, headerOffset: view.getUint32(at + 42, true), byteLength, end };
}

/** Where an entry's bytes begin in the file. Throws FileError. */
export async function entryOffset(source: ByteSource, entry: StoredEntry): Promise<number> {
  const { name, headerOffset, byteLength, limit } = entry;
  const view = viewOf(await source.read(headerOffset, localHeaderBytes));
  if (view.getUint32(0, true) !== 0x04034b50) throw new FileError(name, "a header at its place", "none");
  const offset = headerOffset + localHeaderBytes + view.getUint16(26, true) + view.getUint16(28, true);
  if (offset + byteLength > limit) throw overlap(entry);
  return offset;
}

function overlap({ name, headerOffset, byteLength }: Omit<StoredEntry, "limit">): FileError {
  return new FileError(name, "an entry that overlaps no other", `${byteLength} bytes after ${headerOffset}`);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
