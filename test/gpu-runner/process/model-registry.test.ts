import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { type RegisteredModel, readModelRegistry, watchModelRegistry } from "../../../gpu-runner/model-registry.ts";

let folder: string;
let file: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "atelier-registry-"));
  file = join(folder, "models.json");
});
afterEach(() => rmSync(folder, { recursive: true }));

const hash = `sha256:${"a".repeat(64)}`;
const write = (value: unknown) => {
  writeFileSync(`${file}.new`, JSON.stringify(value));
  renameSync(`${file}.new`, file);
};

test("reads paths from the registry's folder, and nothing where there is no file", () => {
  expect(readModelRegistry(file)).toEqual([]);
  write([
    { hash, path: "a/model", name: "more" },
    { hash, path: "/b" },
  ]);
  expect(readModelRegistry(file)).toEqual([
    { hash, path: join(folder, "a/model") },
    { hash, path: "/b" },
  ]);
});

test.each(["{}", "[{}]", "no json", '[{"hash":"sha256:1","path":"/a"}]'])("refuses %s in one sentence with its name", text => {
  writeFileSync(file, text);
  expect(() => readModelRegistry(file)).toThrow(`${file}: expected a JSON list of {hash, path}`);
});

test("tells of every change, and of a file that has gone bad", async () => {
  const seen: RegisteredModel[][] = [];
  const problems: string[] = [];
  const stop = watchModelRegistry(
    file,
    models => seen.push(models),
    problem => problems.push(problem),
  );
  write([{ hash, path: "/a" }]);
  await expect.poll(() => seen, { timeout: 10_000 }).toEqual([[{ hash, path: "/a" }]]);
  write("bad");
  await expect.poll(() => problems.length, { timeout: 10_000 }).toBe(1);
  stop();
});
