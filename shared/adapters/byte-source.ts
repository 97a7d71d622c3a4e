/** A file of which parts can be read: on a disk, or in an object store by range. */
export interface ByteSource {
  size: number;
  /** Exactly these bytes; the caller keeps within the size. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** A file that is in memory. */
export function bytesSource(bytes: Uint8Array): ByteSource {
  return { size: bytes.length, read: async (offset, length) => bytes.subarray(offset, offset + length) };
}
