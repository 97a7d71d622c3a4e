import { existsSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { sha256OfFile } from "../../../gpu-runner/weights/file-hash.ts";
import { temporaryFolder } from "../support/temporary.ts";

/** `printf a | sha256sum`, and of b. */
const ofA = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
const ofB = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d";

test("a hash is remembered while the file stays as it is, and found anew when it changes, whatever its times say", async () => {
  const folder = temporaryFolder();
  const cacheDir = join(folder, "cache");
  const file = join(folder, "weights");
  writeFileSync(file, "a");
  expect(await sha256OfFile(file, cacheDir)).toBe(ofA);
  // Too young: another write could leave the same times.
  expect(existsSync(join(cacheDir, "hashes"))).toBe(false);
  await delay(2100);
  expect(await sha256OfFile(file, cacheDir)).toBe(ofA);
  const [note] = readdirSync(join(cacheDir, "hashes"));
  const path = join(cacheDir, "hashes", note!);
  const text = readFileSync(path, "utf8");
  writeFileSync(path, text.replace(ofA, ofB));
  expect(await sha256OfFile(file, cacheDir)).toBe(ofB);

  writeFileSync(file, "b");
  utimesSync(file, new Date(0), new Date(0));
  writeFileSync(path, text);
  expect(await sha256OfFile(file, cacheDir)).toBe(ofB);
});

test("without a cache directory, or with a damaged note, the file is read", async () => {
  const folder = temporaryFolder();
  const file = join(folder, "weights");
  writeFileSync(file, "a");
  await delay(2100);
  expect(await sha256OfFile(file)).toBe(ofA);
  await sha256OfFile(file, folder);
  const hashes = join(folder, "hashes");
  writeFileSync(join(hashes, readdirSync(hashes)[0]!), "{");
  expect(await sha256OfFile(file, folder)).toBe(ofA);
});
