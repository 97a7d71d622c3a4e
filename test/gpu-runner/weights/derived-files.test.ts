import { existsSync, mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { CacheError } from "../../../gpu-runner/weights/cache-error.ts";
import { deriveFile, findDerived, holdDerived, IN_USE_MS, trimDerived } from "../../../gpu-runner/weights/derived-files.ts";
import { temporaryFolder } from "../support/temporary.ts";

const hour = 3_600_000;

function put(cacheDir: string, path: string, bytes: number, usedAgo: number): string {
  const file = join(cacheDir, path);
  mkdirSync(join(file, ".."), { recursive: true });
  writeFileSync(file, new Uint8Array(bytes));
  utimesSync(file, (Date.now() - usedAgo) / 1000, 1);
  return file;
}

test("a file is made once; using it changes its time of access alone", () => {
  const cacheDir = temporaryFolder();
  let made = 0;
  const make = () =>
    deriveFile(cacheDir, "weights", "a.f32", temporary => {
      made++;
      writeFileSync(temporary, "content");
    });
  const file = make();
  utimesSync(file, 1, 1);
  expect(make()).toBe(file);
  expect(made).toBe(1);
  expect(statSync(file).mtimeMs).toBe(1000);
  expect(statSync(file).atimeMs).toBeGreaterThan(Date.now() - hour);
  expect(findDerived(join(cacheDir, "weights", "b"))).toBeUndefined();
});

test("a making that fails leaves nothing, and its error is the maker's unless the disk's", () => {
  const cacheDir = temporaryFolder();
  const fail = (error: Error) => () =>
    deriveFile(cacheDir, "patched", "a", temporary => {
      writeFileSync(temporary, "half");
      throw error;
    });
  expect(fail(new RangeError("no such shape"))).toThrow(RangeError);
  const full = Object.assign(new Error("write"), { code: "ENOSPC" });
  expect(fail(full)).toThrow(CacheError);
  expect(fail(full)).toThrow(`cache directory ${cacheDir}: no space left`);
  expect(readdirSync(join(cacheDir, "patched"))).toEqual([]);
});

test("over the budget the least recently used of all kinds give way, but for what is in use", () => {
  const cacheDir = temporaryFolder();
  const weights = put(cacheDir, "weights/a.safetensors", 100, 3 * hour);
  const patched = put(cacheDir, "patched/b.safetensors", 100, 2 * hour);
  put(cacheDir, "prepared/c/weights.bin", 100, 9 * hour);
  const prepared = put(cacheDir, "prepared/c/model.onnx", 10, hour);
  const fresh = put(cacheDir, "weights/d.safetensors", 100, IN_USE_MS / 2);
  const left = () => [weights, patched, prepared, fresh].filter(existsSync);
  trimDerived(cacheDir, 410);
  expect(left()).toEqual([weights, patched, prepared, fresh]);
  trimDerived(cacheDir, 310);
  expect(left()).toEqual([patched, prepared, fresh]);
  const letGo = holdDerived([patched, "/elsewhere/model.safetensors"], cacheDir);
  trimDerived(cacheDir, 1);
  expect(left()).toEqual([patched, fresh]);
  letGo();
  trimDerived(cacheDir, 1, Date.now() + hour);
  expect(left()).toEqual([]);
  expect(readdirSync(join(cacheDir, "prepared"))).toEqual([]);
});

test("what a killed process left unfinished goes after a day, whatever the budget; an empty cache is none", () => {
  const cacheDir = temporaryFolder();
  trimDerived(cacheDir, 1);
  const half = put(cacheDir, "weights/a.tmp", 100, 0);
  const folder = join(put(cacheDir, "prepared/b.tmp/model.onnx", 100, 0), "..");
  utimesSync(half, 1, Date.now() / 1000);
  trimDerived(cacheDir, 1000);
  expect([half, folder].filter(existsSync)).toEqual([half, folder]);
  trimDerived(cacheDir, 1000, Date.now() + 25 * hour);
  expect([half, folder].filter(existsSync)).toEqual([]);
});
