import { type AdapterManifest, adapterManifestSchema } from "../shared/adapter.ts";
import { detectAdapter } from "../shared/adapter-detection.ts";
import type { ByteSource } from "../shared/adapters/byte-source.ts";
import { AtelierError } from "../shared/errors.ts";
import { FileError } from "../shared/file-error.ts";
import { adapterKey, type StoredAdapter } from "./tenant-files.ts";

/** What reading an adapter's headers may cost. Whoever needs more is no adapter that a Worker can look at. */
const BLOCK_BYTES = 512 * 1024;
const MAX_READ_BYTES = 16 * 1024 * 1024;
const MAX_READS = 200;

/** What an adapter's files were found to be, or why they were refused. */
export type Inspection = { readonly manifest: AdapterManifest } | { readonly reasons: string[] };

/** Reads the headers of an adapter's files, which lie in the bucket: never their weights, and nothing in them is executed. */
export async function inspectAdapter(bucket: R2Bucket, { adapter, files }: StoredAdapter): Promise<Inspection> {
  const budget = { bytes: MAX_READ_BYTES, reads: MAX_READS };
  const described = files.map(({ path, sha256, bytes }) => ({ path, sha256, bytes }));
  const sources = files.map(({ path, sha256, bytes }) => ({
    path,
    source: objectSource(bucket, adapterKey(adapter.tenant_id, sha256), bytes, budget),
  }));
  try {
    const detected = await detectAdapter(sources);
    const manifest = adapterManifestSchema.parse({ ...detected, hash: adapter.hash, files: described });
    if (adapter.stated_kind !== null && adapter.stated_kind !== manifest.kind)
      return { reasons: [`kind: expected ${adapter.stated_kind}, as it was announced, got ${manifest.kind}`] };
    return { manifest };
  } catch (error) {
    if (error instanceof FileError) return { reasons: [error.message] };
    throw error;
  }
}

/** An object of the bucket as a file, read in blocks that are kept, so that many small reads cost few requests. */
export function objectSource(bucket: R2Bucket, key: string, size: number, budget: { bytes: number; reads: number }): ByteSource {
  const blocks = new Map<number, Uint8Array>();
  const fetchRange = async (offset: number, length: number): Promise<Uint8Array> => {
    budget.bytes -= length;
    budget.reads -= 1;
    if (budget.bytes < 0 || budget.reads < 0)
      throw new FileError("file", `headers of at most ${MAX_READ_BYTES} bytes in ${MAX_READS} places`, "more");
    const object = await bucket.get(key, { range: { offset, length } });
    if (!object) throw new AtelierError("unavailable", "A file of the adapter is gone.");
    return new Uint8Array(await object.arrayBuffer());
  };
  const block = async (index: number): Promise<Uint8Array> => {
    const known = blocks.get(index);
    if (known) return known;
    const offset = index * BLOCK_BYTES;
    const read = await fetchRange(offset, Math.min(BLOCK_BYTES, size - offset));
    blocks.set(index, read);
    return read;
  };
  return {
    size,
    async read(offset, length) {
      if (offset < 0 || length < 0 || offset + length > size)
        throw new FileError(`byte ${offset}`, `${length} bytes`, `the end of the file at ${size}`);
      if (length > BLOCK_BYTES) return fetchRange(offset, length);
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length; ) {
        const at = offset + done;
        const part = (await block(Math.floor(at / BLOCK_BYTES))).subarray(at % BLOCK_BYTES, (at % BLOCK_BYTES) + length - done);
        bytes.set(part, done);
        done += part.length;
      }
      return bytes;
    },
  };
}
