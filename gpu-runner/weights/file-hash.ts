/** SHA-256 of files, remembered: a model of gigabytes is read once, not at every start. */
import { createHash, randomUUID } from "node:crypto";
import { type BigIntStats, createReadStream, mkdirSync, readFileSync, realpathSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import { parseJson } from "../../shared/json.ts";
import { sha256Schema } from "../../shared/names.ts";

const rememberedSchema = z.object({ state: z.string(), sha256: sha256Schema });

/** A change within the clock's tick could hide behind the same state, so a file counts as settled only after this long. */
const SETTLED_MS = 2000n;

/**
 * SHA-256 of a file in hex. With a cache directory it is remembered for as long as the file's size, times and inode stay the same; the kernel sets the change
 * time, so content cannot change behind it.
 */
export async function sha256OfFile(file: string, cacheDir?: string): Promise<string> {
  const path = realpathSync(file);
  const stats = statSync(path, { bigint: true });
  const note = cacheDir && join(cacheDir, "hashes", `${createHash("sha256").update(path).digest("hex")}.json`);
  const remembered = note && recall(note, stats);
  if (remembered) return remembered;
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  const sha256 = hash.digest("hex");
  const after = statSync(path, { bigint: true });
  if (note && stateOf(after) === stateOf(stats) && BigInt(Date.now()) - stats.ctimeMs > SETTLED_MS) remember(note, stats, sha256);
  return sha256;
}

function stateOf({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return [dev, ino, size, mtimeNs, ctimeNs].join("/");
}

function recall(note: string, stats: BigIntStats): string | undefined {
  let text: string;
  try {
    text = readFileSync(note, "utf8");
  } catch {
    return undefined;
  }
  const found = rememberedSchema.safeParse(parseJson(text)).data;
  return found?.state === stateOf(stats) ? found.sha256 : undefined;
}

/** A disk that is full or read-only costs time at the next start, nothing else. */
function remember(note: string, stats: BigIntStats, sha256: string): void {
  try {
    mkdirSync(join(note, ".."), { recursive: true });
    const temporary = `${note}.${randomUUID()}`;
    writeFileSync(temporary, JSON.stringify({ state: stateOf(stats), sha256 }));
    renameSync(temporary, note);
  } catch {
    return;
  }
}
