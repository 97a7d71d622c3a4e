import { AtelierError } from "../shared/errors.ts";
import { mediaTypes } from "../shared/picture.ts";
import { type InputMediaType, inputMediaTypes } from "../shared/upload.ts";
import { pictureSize } from "./picture-size.ts";

/** A file that is announced before its body is read. */
export interface Announced {
  readonly key: string;
  readonly bytes: number;
  /** 64 hexadecimal digits; R2 refuses other content. */
  readonly sha256: string;
}

/** Leading bytes of each kind of file; `undefined` stands for any byte. */
const magic = {
  "image/png": [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a],
  "image/jpeg": [0xff, 0xd8, 0xff],
  "image/webp": [0x52, 0x49, 0x46, 0x46, undefined, undefined, undefined, undefined, 0x57, 0x45, 0x42, 0x50],
  // A header of less than 16 MiB, which is JSON.
  "application/x-safetensors": [undefined, undefined, undefined, 0, 0, 0, 0, 0, 0x7b],
} as const satisfies Record<InputMediaType, readonly (number | undefined)[]>;
const MAGIC_BYTES = Math.max(...Object.values(magic).map(bytes => bytes.length));

/** The media type that a file's first bytes tell; undefined where none of those that are taken. */
export function mediaTypeOf(head: Uint8Array): InputMediaType | undefined {
  return inputMediaTypes.find(type => magic[type].every((byte, i) => byte === undefined || head[i] === byte));
}

/** Most pixels of an input picture. */
const MAX_INPUT_PIXELS = 64 * 1024 * 1024;

/**
 * The size of an input file, of which `head` are the first bytes: null where they don't tell, or it is no picture.
 * @throws AtelierError invalid_request where it has too many pixels, with the field that it came in
 */
export function checkedSize(head: Uint8Array, mediaType: InputMediaType, field: string): { width: number | null; height: number | null } {
  const size = mediaType === "application/x-safetensors" ? undefined : pictureSize(head);
  if (size && size.width * size.height > MAX_INPUT_PIXELS) {
    const [expected, got] = [`a picture of at most ${MAX_INPUT_PIXELS} pixels`, `${size.width} x ${size.height}`];
    throw new AtelierError("invalid_request", `Expected ${expected}, got ${got}.`, { errors: [{ field, expected, got }] });
  }
  return size ?? { width: null, height: null };
}

const pictureTypes: readonly string[] = Object.values(mediaTypes);

/**
 * Streams a result file into the bucket.
 * @throws AtelierError as `storeFile`, and invalid_request for other content than a picture
 */
export function storePicture(bucket: R2Bucket, announced: Announced, body: ReadableStream<Uint8Array>): Promise<void> {
  return storeFile(bucket, announced, body, head => {
    const type = mediaTypeOf(head);
    if (type === undefined || !pictureTypes.includes(type))
      throw new AtelierError("invalid_request", "The body is not a picture: expected the first bytes of a png, webp or jpeg file.");
    return type;
  });
}

/**
 * Streams a file into the bucket, so that many uploads share a Worker's 128 MB. Nothing is stored unless all of it is as announced.
 * `typeOf` tells the media type from the first bytes, or throws.
 * @throws AtelierError invalid_request for another length, hash_mismatch, unavailable where the bucket fails
 */
export async function storeFile(
  bucket: R2Bucket,
  announced: Announced,
  body: ReadableStream<Uint8Array>,
  typeOf: (head: Uint8Array) => string,
): Promise<void> {
  const reader = body.getReader();
  try {
    const head = await readHead(reader);
    await transfer(bucket, announced, typeOf(head), head, reader);
  } finally {
    // Lets go of what a refusal left unread.
    await reader.cancel().catch(() => undefined);
  }
}

async function readHead(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<Uint8Array> {
  let head = new Uint8Array();
  while (head.length < MAGIC_BYTES) {
    const { done, value } = await reader.read();
    if (done) break;
    const joined = new Uint8Array(head.length + value.length);
    joined.set(head);
    joined.set(value, head.length);
    head = joined;
  }
  return head;
}

async function transfer(
  bucket: R2Bucket,
  { key, bytes, sha256 }: Announced,
  contentType: string,
  head: Uint8Array,
  reader: ReadableStreamDefaultReader<Uint8Array>,
): Promise<void> {
  // R2 needs the length beforehand; the stream fails unless it gets exactly that.
  const { readable, writable } = new FixedLengthStream(bytes);
  const writer = writable.getWriter();
  // Whichever side fails stops the other one, which would wait for ever.
  const fail = (error: AtelierError): never => {
    writer.abort(error).catch(() => undefined);
    throw error;
  };
  const stored = bucket
    .put(key, readable, { sha256, httpMetadata: { contentType } })
    .catch((error: unknown) => fail(storeError(error, sha256)));
  const sent = send(writer, bytes, head, reader).catch((error: unknown) => fail(bodyError(error)));
  try {
    await Promise.all([sent, stored]);
  } finally {
    await Promise.allSettled([sent, stored]);
  }
}

function storeError(error: unknown, sha256: string): AtelierError {
  if (/\(10037\)|checksum/i.test(String(error))) return new AtelierError("hash_mismatch", `Expected SHA-256 ${sha256}.`);
  return new AtelierError("unavailable", "The object store did not take the file.", { cause: error });
}

function bodyError(error: unknown): AtelierError {
  return error instanceof AtelierError ? error : new AtelierError("invalid_request", "The body broke off.", { cause: error });
}

/** Sends each chunk once the next one has come, so that the last one is held back until it is certain that nothing follows. */
async function send(
  writer: WritableStreamDefaultWriter<Uint8Array>,
  bytes: number,
  head: Uint8Array,
  reader: ReadableStreamDefaultReader<Uint8Array>,
): Promise<void> {
  const refused = (got: string) => new AtelierError("invalid_request", `Expected ${bytes} bytes as announced, got ${got}.`);
  let come = head.length;
  for (let chunk = head; ; ) {
    const { done, value } = await reader.read();
    if (done && come < bytes) throw refused(String(come));
    come += value?.length ?? 0;
    if (come > bytes) throw refused("more");
    await writer.write(chunk);
    if (done) break;
    chunk = value;
  }
  await writer.close();
}

/** Reads a small body whole. @throws AtelierError payload_too_large as soon as it is longer than `max` bytes */
export async function readAtMost(body: ReadableStream<Uint8Array> | null, max: number): Promise<string> {
  if (!body) return "";
  const decoder = new TextDecoder();
  let text = "";
  let bytes = 0;
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > max) throw new AtelierError("payload_too_large", `Expected at most ${max} bytes.`);
    text += decoder.decode(chunk, { stream: true });
  }
  return text + decoder.decode();
}
