import { z } from "zod";
import { AtelierError } from "../shared/errors.ts";
import { PART_BYTES, type TakenPart } from "../shared/file-parts.ts";

/**
 * Files of any size in R2's multipart uploads. R2 checks no hash of these, so each part is streamed through a digest as it comes, and a whole
 * file as it is moved (`copyFile`). An upload that is never completed is dropped by R2 after a week.
 */

/** What R2 keeps of a file's announcement until it is moved. */
const announcedSchema = z.object({ sha256: z.string() });

/** Opens an upload in parts. @returns its id */
export async function beginParts(
  bucket: R2Bucket,
  key: string,
  { sha256, mediaType }: { sha256: string; mediaType: string },
): Promise<string> {
  const httpMetadata = { contentType: mediaType };
  return (await stored(() => bucket.createMultipartUpload(key, { httpMetadata, customMetadata: { sha256 } }))).uploadId;
}

/**
 * Streams one part.
 * @throws AtelierError hash_mismatch, invalid_request for another length, unavailable where the bucket fails
 */
export async function putPart(
  bucket: R2Bucket,
  { key, uploadId, part, bytes, sha256 }: { key: string; uploadId: string; part: number; bytes: number; sha256: string },
  body: ReadableStream<Uint8Array>,
): Promise<TakenPart> {
  const digest = new crypto.DigestStream("SHA-256");
  // Nobody asks for the hash of a body that breaks off.
  digest.digest.catch(() => undefined);
  const fixed = new FixedLengthStream(bytes);
  // Unlike a body's own tee, this one waits for the slower side, so that no part lies in memory as a whole.
  const [toDigest, toBucket] = [digest.getWriter(), fixed.writable.getWriter()];
  const sent = forward(body, [toDigest, toBucket], bytes);
  const upload = bucket.resumeMultipartUpload(key, uploadId).uploadPart(part, fixed.readable);
  const [forwarded, uploaded] = await Promise.allSettled([sent, upload]);
  if (forwarded.status === "rejected") throw forwarded.reason;
  if (uploaded.status === "rejected") throw unavailable(uploaded.reason);
  if (hex(await digest.digest) !== sha256) throw new AtelierError("hash_mismatch", `Expected a part with SHA-256 ${sha256}.`);
  return { part: uploaded.value.partNumber, etag: uploaded.value.etag };
}

/** Makes one file of the parts. @throws AtelierError invalid_request where the parts or their length are not what was taken */
export async function completeParts(
  bucket: R2Bucket,
  { key, uploadId, bytes, parts }: { key: string; uploadId: string; bytes: number; parts: readonly TakenPart[] },
): Promise<void> {
  const uploaded = parts.map(({ part, etag }) => ({ partNumber: part, etag }));
  let object: R2Object;
  try {
    object = await bucket.resumeMultipartUpload(key, uploadId).complete(uploaded);
  } catch (error) {
    // 10025: a part is not there; 10048: parts of unequal size; 10024: no such upload, also where it was completed by an attempt of ours.
    const there = await stored(() => bucket.head(key));
    if (there?.size === bytes && /\(10024\)/.test(String(error))) return;
    if (/\((10024|10025|10048|10011)\)/.test(String(error)))
      throw new AtelierError("invalid_request", "Expected the parts that were taken.");
    throw unavailable(error);
  }
  if (object.size === bytes) return;
  await stored(() => bucket.delete(key));
  throw new AtelierError("invalid_request", `Expected parts of ${bytes} bytes in all, got ${object.size}.`);
}

/** The hash that R2 checked, or of a file that came in parts the announced one, which is checked when the file is moved. */
export function announcedHash(object: R2Object): string | undefined {
  return object.checksums.toJSON().sha256 ?? announcedSchema.safeParse(object.customMetadata).data?.sha256;
}

/**
 * Copies a file of any size. @returns whether it has this hash; otherwise nothing is there
 * @throws Error where the bucket fails
 */
export async function copyFile(
  bucket: R2Bucket,
  from: R2ObjectBody,
  to: string,
  { sha256, mediaType }: { sha256: string; mediaType?: string },
  partBytes = PART_BYTES,
): Promise<boolean> {
  const httpMetadata = mediaType === undefined ? {} : { contentType: mediaType };
  if (from.size <= partBytes) {
    // R2 checks the hash.
    await bucket.put(to, from.body, { sha256, httpMetadata });
    return true;
  }
  await from.body.cancel();
  const upload = await bucket.createMultipartUpload(to, { httpMetadata, customMetadata: { sha256 } });
  const digest = new crypto.DigestStream("SHA-256");
  const toDigest = digest.getWriter();
  const parts: R2UploadedPart[] = [];
  for (let offset = 0; offset < from.size; offset += partBytes) {
    const length = Math.min(partBytes, from.size - offset);
    const range = await bucket.get(from.key, { range: { offset, length }, onlyIf: { etagMatches: from.etag } });
    if (!range || !("body" in range)) throw new Error(`the object ${from.key} changed while it was copied`);
    const fixed = new FixedLengthStream(length);
    const sent = forward(
      range.body,
      [fixed.writable.getWriter(), { write: chunk => toDigest.write(chunk), close: async () => {} }],
      length,
    );
    const [part] = await Promise.all([upload.uploadPart(parts.length + 1, fixed.readable), sent]);
    parts.push(part);
  }
  await toDigest.close();
  if (hex(await digest.digest) === sha256) {
    await upload.complete(parts);
    return true;
  }
  await upload.abort();
  return false;
}

interface Sink {
  write(chunk: Uint8Array): Promise<void>;
  close(): Promise<void>;
  abort?(reason: unknown): Promise<void>;
}

/** Hands each chunk to all of the sinks. @throws AtelierError invalid_request where the body has another length, or breaks off */
async function forward(body: ReadableStream<Uint8Array>, sinks: readonly Sink[], bytes: number): Promise<void> {
  let come = 0;
  try {
    for await (const chunk of body) {
      come += chunk.length;
      if (come > bytes) throw new AtelierError("invalid_request", `Expected ${bytes} bytes as announced, got more.`);
      await Promise.all(sinks.map(sink => sink.write(chunk)));
    }
    if (come < bytes) throw new AtelierError("invalid_request", `Expected ${bytes} bytes as announced, got ${come}.`);
    await Promise.all(sinks.map(sink => sink.close()));
  } catch (error) {
    await Promise.allSettled(sinks.map(sink => sink.abort?.(error)));
    throw error instanceof AtelierError ? error : new AtelierError("invalid_request", "The body broke off.", { cause: error });
  }
}

async function stored<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw unavailable(error);
  }
}

function unavailable(cause: unknown): AtelierError {
  return new AtelierError("unavailable", "The object store did not take the file.", { cause });
}

function hex(bytes: ArrayBuffer): string {
  return Array.from(new Uint8Array(bytes), byte => byte.toString(16).padStart(2, "0")).join("");
}
