import { AtelierError } from "../shared/errors.ts";
import { MAX_INPUT_BYTES } from "../shared/upload.ts";

/** Reads zip files that are in memory (PKWARE APPNOTE 6.3.10): stored and deflated entries, without encryption, ZIP64 or several disks. */

const END = 0x06054b50;
const ENTRY = 0x02014b50;
const LOCAL = 0x04034b50;
const END_BYTES = 22;
const MAX_COMMENT_BYTES = 0xffff;

export interface ZipLimits {
  readonly files: number;
  /** Of all files together, unpacked: what a small zip may grow to. */
  readonly bytes: number;
}

function refuse(expected: string, got: string): AtelierError {
  return new AtelierError("invalid_request", undefined, { errors: [{ field: "zip", expected, got }] });
}

/** A file that is unpacked when it is asked for, so that a zip is never in memory unpacked as a whole. */
export type PackedFile = () => Promise<Uint8Array<ArrayBuffer>>;

/** The files of a zip by their names; folders are left out. @throws AtelierError invalid_request that says what is wrong with it */
export function readZip(zip: Uint8Array<ArrayBuffer>, limits: ZipLimits): Map<string, PackedFile> {
  try {
    return readEntries(zip, limits);
  } catch (error) {
    if (error instanceof RangeError) throw refuse("a zip file", "one that breaks off");
    throw error;
  }
}

function readEntries(zip: Uint8Array<ArrayBuffer>, limits: ZipLimits): Map<string, PackedFile> {
  const view = new DataView(zip.buffer, zip.byteOffset, zip.byteLength);
  const end = findEnd(view);
  const count = view.getUint16(end + 10, true);
  if (count > limits.files) throw refuse(`at most ${limits.files} files`, String(count));
  const files = new Map<string, PackedFile>();
  let left = limits.bytes;
  for (let i = 0, at = view.getUint32(end + 16, true); i < count; i++) {
    if (view.getUint32(at, true) !== ENTRY) throw refuse("a zip file", "one whose directory is damaged");
    const nameBytes = view.getUint16(at + 28, true);
    const name = new TextDecoder().decode(zip.subarray(at + 46, at + 46 + nameBytes));
    if (!name.endsWith("/")) {
      files.set(name, packedFile(zip, view, at, name));
      left -= view.getUint32(at + 24, true);
      if (left < 0) throw refuse(`at most ${limits.bytes} bytes unpacked`, "more");
    }
    at += 46 + nameBytes + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return files;
}

function findEnd(view: DataView): number {
  for (let at = view.byteLength - END_BYTES; at >= 0 && at >= view.byteLength - END_BYTES - MAX_COMMENT_BYTES; at--)
    if (view.getUint32(at, true) === END) return at;
  throw refuse("a zip file", "no end of a zip file's directory");
}

/** The entry whose row of the directory is at `at`. */
function packedFile(zip: Uint8Array<ArrayBuffer>, view: DataView, at: number, name: string): PackedFile {
  const [flags, method] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true)];
  const [packed, bytes] = [view.getUint32(at + 20, true), view.getUint32(at + 24, true)];
  if (flags & 1) throw refuse("files that are not encrypted", name);
  if (bytes > MAX_INPUT_BYTES) throw refuse(`files of at most ${MAX_INPUT_BYTES} bytes`, `${name} of ${bytes}`);
  const local = view.getUint32(at + 42, true);
  if (view.getUint32(local, true) !== LOCAL) throw refuse("a zip file", `one without the entry of ${name}`);
  const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
  if (start + packed > zip.length) throw refuse("a zip file", `one that breaks off in ${name}`);
  if (method !== 8 && (method !== 0 || packed !== bytes))
    throw refuse("files that are stored or deflated", `${name} with method ${method}`);
  return async () => {
    const content = zip.slice(start, start + packed);
    return method === 0 ? content : inflate(content, bytes, name);
  };
}

/** Unpacks no more than was announced, whatever the stream holds. */
async function inflate(packed: Uint8Array<ArrayBuffer>, bytes: number, name: string): Promise<Uint8Array<ArrayBuffer>> {
  const unpacked = new Uint8Array(bytes);
  let length = 0;
  try {
    for await (const chunk of new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"))) {
      if (length + chunk.length > bytes) throw refuse(`${bytes} bytes, as announced`, `more in ${name}`);
      unpacked.set(chunk, length);
      length += chunk.length;
    }
  } catch (error) {
    throw error instanceof AtelierError ? error : refuse("a deflated file", `${name}, which does not unpack`);
  }
  if (length < bytes) throw refuse(`${bytes} bytes, as announced`, `${length} in ${name}`);
  return unpacked;
}
