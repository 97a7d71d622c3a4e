import { env } from "cloudflare:workers";
import { ulid } from "ulid";
import { describe, expect, it } from "vitest";
import { beginParts, completeParts, copyFile, putPart } from "../../edge/file-parts.ts";
import { moveFile } from "../../edge/staged-files.ts";
import { sha256Hex } from "../../shared/canonical.ts";
import type { TakenPart } from "../../shared/file-parts.ts";

/** The least that R2 takes for any part but the last. */
const PART = 5 * 1024 * 1024;
const mediaType = "application/octet-stream";

function bytesOf(length: number, seed: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(length).map((_, i) => (i * 7 + (i >> 8) + seed) & 255);
}
const file = bytesOf(2 * PART + 1000, 1);
const bodyOf = (bytes: Uint8Array<ArrayBuffer>) => new Response(bytes).body!;
const slices = [file.slice(0, PART), file.slice(PART, 2 * PART), file.slice(2 * PART)];

async function send(key: string, parts = slices, sha256?: string): Promise<{ uploadId: string; parts: TakenPart[] }> {
  const uploadId = await beginParts(env.BUCKET, key, { sha256: sha256 ?? (await sha256Hex(file)), mediaType });
  const taken: TakenPart[] = [];
  for (const [i, bytes] of parts.entries()) {
    const part = { key, uploadId, part: i + 1, bytes: bytes.length, sha256: await sha256Hex(bytes) };
    taken.push(await putPart(env.BUCKET, part, bodyOf(bytes)));
  }
  return { uploadId, parts: taken };
}
const newKey = () => `staging/exe_${ulid()}/1/a.bin`;
async function hashAt(key: string): Promise<string | null> {
  const object = await env.BUCKET.get(key);
  return object && sha256Hex(new Uint8Array(await object.arrayBuffer()));
}

describe("a file in parts", () => {
  it("becomes one file, whose end may be told twice, and is moved with its hash checked", async () => {
    const key = newKey();
    const all = { key, bytes: file.length, ...(await send(key)) };
    await completeParts(env.BUCKET, all);
    await completeParts(env.BUCKET, all);
    expect(await hashAt(key)).toBe(await sha256Hex(file));
    const result = { sha256: await sha256Hex(file), bytes: file.length };
    expect(await moveFile(env.BUCKET, key, `${key}.moved`, result, mediaType)).toBe(undefined);
    expect(await hashAt(`${key}.moved`)).toBe(result.sha256);
  });

  it("is copied in parts, and not where it is another file than announced", async () => {
    const key = newKey();
    const wrong = "0".repeat(64);
    await completeParts(env.BUCKET, { key, bytes: file.length, ...(await send(key, slices, wrong)) });
    const copy = async (sha256: string) => copyFile(env.BUCKET, (await env.BUCKET.get(key))!, `${key}.copy`, { sha256 }, PART);
    expect(await copy(wrong)).toBe(false);
    expect(await hashAt(`${key}.copy`)).toBe(null);
    expect(await copy(await sha256Hex(file))).toBe(true);
    expect(await hashAt(`${key}.copy`)).toBe(await sha256Hex(file));
  });

  it.each([
    ["another hash", slices[0]!, { sha256: "0".repeat(64) }, "hash_mismatch"],
    ["a longer body", slices[0]!, { bytes: PART - 1 }, "invalid_request"],
    ["a shorter body", slices[2]!, { bytes: 1001 }, "invalid_request"],
  ])("refuses a part with %s", async (_, bytes, changes, code) => {
    const key = newKey();
    const uploadId = await beginParts(env.BUCKET, key, { sha256: await sha256Hex(file), mediaType });
    const part = { key, uploadId, part: 1, bytes: bytes.length, sha256: await sha256Hex(bytes), ...changes };
    await expect(putPart(env.BUCKET, part, bodyOf(bytes))).rejects.toMatchObject({ code });
  });

  it("refuses an end that names other parts or another length, and then stores nothing", async () => {
    const key = newKey();
    const { uploadId, parts } = await send(key);
    const strange = parts.map(({ part }) => ({ part, etag: "another" }));
    await expect(completeParts(env.BUCKET, { key, uploadId, bytes: file.length, parts: strange })).rejects.toMatchObject({
      code: "invalid_request",
    });
    await expect(completeParts(env.BUCKET, { key, uploadId, bytes: file.length - 1, parts })).rejects.toMatchObject({
      code: "invalid_request",
    });
    expect(await hashAt(key)).toBe(null);
  });
});
