import type { Result } from "../shared/protocol.ts";
import { announcedHash, copyFile } from "./file-parts.ts";

/** Moves a staged file to its place. @returns why it is refused, if it is */
export async function moveFile(
  bucket: R2Bucket,
  from: string,
  to: string,
  { sha256, bytes }: Pick<Result, "sha256" | "bytes">,
  mediaType: string,
): Promise<string | undefined> {
  const staged = await bucket.get(from);
  if (!staged) return "there is no staged file";
  const got = announcedHash(staged);
  if (got === sha256 && staged.size === bytes && staged.httpMetadata?.contentType === mediaType) {
    if (await copyFile(bucket, staged, to, { sha256, mediaType })) return undefined;
    return `expected a staged file with SHA-256 ${sha256}, got another one than its sender announced`;
  }
  await staged.body.cancel();
  if (got !== sha256) return `expected a staged file with SHA-256 ${sha256}, got ${got ?? "none"}`;
  if (staged.size !== bytes) return `expected a staged file of ${bytes} bytes, got ${staged.size}`;
  return `expected a staged file of type ${mediaType}, got ${staged.httpMetadata?.contentType ?? "none"}`;
}
