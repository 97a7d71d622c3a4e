import { toHex } from "../shared/canonical.ts";
import { AtelierError } from "../shared/errors.ts";
import type { GenerationView } from "../shared/job.ts";
import { mediaTypes } from "../shared/picture.ts";
import { type Env, settings } from "./env.ts";
import { errorFields, log } from "./log.ts";
import { recallMissing } from "./recall.ts";
import { equalSecrets, hmac } from "./secrets.ts";
import type { TenantStore } from "./tenant.ts";

/** A URL that shows one picture to whoever has it, until it expires. */
async function pictureUrl(env: Env, id: string, origin: string): Promise<string> {
  const { PICTURE_URL_TTL_S } = settings(env);
  const expires = Math.floor(Date.now() / 1000) + PICTURE_URL_TTL_S;
  return `${origin}/v1/pictures/${id}?expires=${expires}&signature=${await urlSignature(env, id, expires)}`;
}

/** Whether a signed URL is genuine and not expired. The answer doesn't say which of the two failed. */
export async function isValidPictureUrl(env: Env, id: string, expires: number, signature: string): Promise<boolean> {
  const genuine = await equalSecrets(signature, await urlSignature(env, id, expires));
  return genuine && Date.now() / 1000 <= expires;
}

async function urlSignature(env: Env, id: string, expires: number): Promise<string> {
  const { URL_KEY } = settings(env);
  return toHex(await hmac(URL_KEY, `picture\n${id}\n${expires}`));
}

/** A part of a file: offset and length in bytes. */
export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/**
 * The part that a Range header asks for (RFC 9110, 14.1.2), or undefined where the whole is to be sent:
 * without header, for another unit, several ranges, or a header that does not parse.
 * @throws AtelierError range_not_satisfiable where nothing of the file lies in the range
 */
export function parseRange(header: string | undefined, bytes: number): ByteRange | undefined {
  const [, first, last] = /^bytes=(\d*)-(\d*)$/.exec(header ?? "") ?? [];
  if (first === undefined || last === undefined || (first === "" && last === "")) return undefined;
  if (first !== "" && last !== "" && Number(last) < Number(first)) return undefined;
  const offset = first === "" ? Math.max(0, bytes - Number(last)) : Number(first);
  const end = first === "" || last === "" ? bytes : Math.min(bytes, Number(last) + 1);
  if (offset >= bytes || end <= offset) throw new AtelierError("range_not_satisfiable", `The file has ${bytes} bytes.`);
  return { offset, length: end - offset };
}

/** Deletes files whose rows are gone. What stays behind is swept up as orphans. */
export async function removeFiles(env: Env, keys: readonly string[]): Promise<void> {
  try {
    // R2 deletes up to 1,000 objects a call.
    for (let start = 0; start < keys.length; start += 1000) await env.BUCKET.delete(keys.slice(start, start + 1000));
    await recallMissing(env, keys);
  } catch (error) {
    log("warn", "files of deleted rows not deleted", { count: keys.length, ...errorFields(error) });
  }
}

/** File name ending of a media type. */
export function fileEnding(mediaType: string): string {
  return Object.entries(mediaTypes).find(([, type]) => type === mediaType)?.[0] ?? "bin";
}

/** Whether an If-None-Match header names this entity tag, or any. */
export function matchesEtag(header: string | undefined, etag: string): boolean {
  if (header === undefined) return false;
  return header.trim() === "*" || header.split(",").some(tag => tag.trim().replace(/^W\//, "") === etag);
}

/** The generation with a fresh URL for each picture that there is; `origin` is where the API was called. */
export async function withUrls(env: Env, generation: GenerationView, origin: string): Promise<GenerationView> {
  const pictures = await Promise.all(
    generation.pictures.map(async picture =>
      picture.id === null ? picture : { ...picture, url: await pictureUrl(env, picture.id, origin) },
    ),
  );
  return { ...generation, pictures };
}

/** The generation with the files of its pictures in base64. */
export async function withFiles(env: Env, store: TenantStore, generation: GenerationView): Promise<GenerationView> {
  const pictures = await Promise.all(
    generation.pictures.map(async picture => {
      const row = picture.id === null ? undefined : await store.picture(picture.id);
      const object = row && (await env.BUCKET.get(row.r2_key));
      return object ? { ...picture, b64: base64(new Uint8Array(await object.arrayBuffer())) } : picture;
    }),
  );
  return { ...generation, pictures };
}

function base64(bytes: Uint8Array): string {
  // String.fromCharCode takes its bytes as arguments, whose number is limited.
  const parts = Array.from({ length: Math.ceil(bytes.length / 8192) }, (_, i) =>
    String.fromCharCode(...bytes.subarray(i * 8192, (i + 1) * 8192)),
  );
  return btoa(parts.join(""));
}
