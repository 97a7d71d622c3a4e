import { toHex } from "../shared/canonical.ts";
import type { UploadCapability } from "../shared/upload.ts";
import { type Env, settings } from "./env.ts";
import { equalSecrets, hmac } from "./secrets.ts";

/** A URL that takes one file, once or again, until it expires. What the file has to be stands in the row that its path names. */
export async function uploadCapability(
  env: Env,
  { origin, path, mediaType, ttlS }: { origin: string; path: string; mediaType: string; ttlS: number },
): Promise<UploadCapability> {
  const expires = Math.floor(Date.now() / 1000) + ttlS;
  return {
    method: "PUT",
    url: `${origin}${path}?expires=${expires}&signature=${await urlSignature(env, path, expires)}`,
    headers: { "content-type": mediaType },
    expires_at: new Date(expires * 1000).toISOString(),
  };
}

/** Whether a signed upload URL is genuine and not expired. The answer doesn't say which of the two failed. */
export async function isValidUploadUrl(env: Env, path: string, expires: number, signature: string): Promise<boolean> {
  const genuine = await equalSecrets(signature, await urlSignature(env, path, expires));
  return genuine && Date.now() / 1000 <= expires;
}

async function urlSignature(env: Env, path: string, expires: number): Promise<string> {
  return toHex(await hmac(settings(env).URL_KEY, `upload\n${path}\n${expires}`));
}

/** Path and query of a URL that gives out one file without a key until it expires. */
export async function downloadUrl(env: Env, path: string, ttlS: number): Promise<string> {
  const expires = Math.floor(Date.now() / 1000) + ttlS;
  return `${path}?expires=${expires}&signature=${await downloadSignature(env, path, expires)}`;
}

/** Whether a signed download URL is genuine and not expired. The answer doesn't say which of the two failed. */
export async function isValidDownloadUrl(env: Env, path: string, expires: number, signature: string): Promise<boolean> {
  const genuine = await equalSecrets(signature, await downloadSignature(env, path, expires));
  return genuine && Date.now() / 1000 <= expires;
}

async function downloadSignature(env: Env, path: string, expires: number): Promise<string> {
  return toHex(await hmac(settings(env).URL_KEY, `download\n${path}\n${expires}`));
}
