import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, test } from "vitest";
import { CacheError } from "../../../gpu-runner/weights/cache-error.ts";
import { linkIntoFolder, placeFloat32 } from "../../../gpu-runner/weights/placement.ts";
import { withSafetensors } from "../../../gpu-runner/weights/safetensors.ts";
import { bytesOf, writeSafetensors } from "../../../gpu-runner/weights/safetensors-write.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { float32Tensor, floatToHalf } from "../support/tensors.ts";

const values = Float32Array.from({ length: 300 }, (_, i) => i / 8 - 17);
const sha256 = "ab".repeat(32);

function halfFile(folder: string): string {
  const file = join(folder, "half.safetensors");
  writeSafetensors(file, [
    { name: "a", dtype: "F16", shape: [3, 100], data: () => [bytesOf(Uint16Array.from(values, floatToHalf))] },
    { name: "ids", dtype: "I64", shape: [2], data: () => [new Uint8Array(16)] },
    { name: "b", dtype: "F16", shape: [1], data: () => [bytesOf(Uint16Array.of(floatToHalf(0.5)))] },
  ]);
  return file;
}

describe("placing weights", () => {
  test("aligned fp32 stays where it is", () => {
    const folder = temporaryFolder();
    const file = join(folder, "float.safetensors");
    writeSafetensors(file, [float32Tensor("a", [300], values)]);
    expect(placeFloat32(file, sha256, join(folder, "cache"))).toBe(file);
    expect(readdirSync(folder)).toEqual(["float.safetensors"]);
  });

  test("halves are widened once, named by the content's hash, aligned to pages, without what is not floating point", () => {
    const [folder, cache] = [temporaryFolder(), temporaryFolder()];
    const placed = placeFloat32(halfFile(folder), sha256, cache);
    expect(basename(placed)).toMatch(new RegExp(`^${sha256}\\.[0-9a-f]{16}\\.f32\\.safetensors$`));
    withSafetensors(placed, read => {
      expect([...read.entries.keys()]).toEqual(["a", "b"]);
      expect(read.entry("a")).toMatchObject({ dtype: "F32", shape: [3, 100], offset: 4096 });
      expect(read.readFloat32("a")).toEqual(values);
      expect([...read.readFloat32("b")]).toEqual([0.5]);
    });
    const before = statSync(placed).mtimeMs;
    utimesSync(placed, 1, 1);
    expect(placeFloat32(halfFile(folder), sha256, cache)).toBe(placed);
    // Its content is as old as it was, but it was used.
    expect(statSync(placed).mtimeMs).toBe(1000);
    expect(statSync(placed).atimeMs).toBeGreaterThanOrEqual(Math.floor(before) - 1000);
    expect(before).not.toBe(1000);
    expect(readdirSync(join(cache, "weights"))).toHaveLength(1);
  });

  test("fp32 at odd offsets is rewritten", () => {
    const [folder, cache] = [temporaryFolder(), temporaryFolder()];
    const file = join(folder, "odd.safetensors");
    writeSafetensors(file, [{ name: "u", dtype: "U8", shape: [2], data: () => [new Uint8Array(2)] }, float32Tensor("a", [300], values)]);
    withSafetensors(placeFloat32(file, sha256, cache), read => {
      expect(read.entry("a").offset % 4096).toBe(0);
      expect(read.readFloat32("a")).toEqual(values);
    });
  });

  test("a cache that cannot be written is one clear error", () => {
    const folder = temporaryFolder();
    const cache = join(folder, "file");
    writeFileSync(cache, "");
    expect(() => placeFloat32(halfFile(folder), sha256, cache)).toThrow(CacheError);
    expect(() => placeFloat32(halfFile(folder), sha256, cache)).toThrow(`cache directory ${cache}: `);
    expect(() => linkIntoFolder([halfFile(folder)], cache)).toThrow(CacheError);
  });

  test("a disk that fills up midway leaves no partial file", () => {
    const [folder, cache] = [temporaryFolder(), temporaryFolder()];
    const file = halfFile(folder);
    const module = join(import.meta.dirname, "../../../gpu-runner/weights/placement.ts");
    const script = `const { placeFloat32 } = await import(${JSON.stringify(module)});
      try { placeFloat32(${JSON.stringify(file)}, "${sha256}", ${JSON.stringify(cache)}); console.log("placed"); } catch (error) { console.log(error.name); }`;
    // The shell's limit on a file's size (in KiB) makes the write fail after 4 KiB of 5.
    const limited = ["-c", 'trap "" XFSZ; ulimit -f 4; exec "$0" --input-type=module -e "$1"', process.execPath, script];
    expect(execFileSync("bash", limited, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim()).toBe("CacheError");
    expect(readdirSync(join(cache, "weights"))).toEqual([]);
  });
});

describe("a session's folder", () => {
  test("holds hard links under names of their own, and sweeps what a killed process left a day ago", () => {
    const [folder, cache] = [temporaryFolder(), temporaryFolder()];
    const stale = join(cache, "sessions", "s-stale");
    mkdirSync(stale, { recursive: true });
    utimesSync(stale, Date.now() / 1000 - 90_000, Date.now() / 1000 - 90_000);
    const file = halfFile(folder);
    const linked = linkIntoFolder([file, file], cache);
    expect(linked.names).toEqual(["0-half.safetensors", "1-half.safetensors"]);
    expect(statSync(join(linked.folder, linked.names[0]!)).ino).toBe(statSync(file).ino);
    expect(readdirSync(join(cache, "sessions"))).toEqual([linked.folder.slice(join(cache, "sessions").length + 1)]);
  });

  test("a file that is not there leaves no folder behind", () => {
    const cache = temporaryFolder();
    expect(() => linkIntoFolder(["/does/not/exist"], cache)).toThrow(CacheError);
    expect(readdirSync(join(cache, "sessions"))).toEqual([]);
  });
});
