import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadDiffusionModel } from "../../../gpu-runner/load.ts";
import { MalformedCases, readCases } from "../../../gpu-runner/verify/cases.ts";
import { compareJson, compareTensors } from "../../../gpu-runner/verify/compare.ts";
import type { GoldenCase } from "../../../gpu-runner/verify/kind.ts";
import { verifyKinds } from "../../../gpu-runner/verify/kinds/index.ts";
import { type CaseResult, runCases, verdict } from "../../../gpu-runner/verify/run.ts";

const goldens = join(import.meta.dirname, "../../goldens/base");
const cases = readCases(goldens);
let scratch: string;
let results: CaseResult[];

beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), "atelier-verify-test-"));
  const cacheDir = join(scratch, "cache");
  results = await runCases({
    folder: goldens,
    kinds: verifyKinds,
    cacheDir,
    load: path => loadDiffusionModel(path, { provider: "cpu", cacheDir }),
  });
  // Every case of the folder runs here.
}, 120_000);
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** A copy of the goldens with other cases. */
function folderWith(name: string, rows: unknown): string {
  const folder = join(scratch, name);
  cpSync(goldens, folder, { recursive: true });
  writeFileSync(join(folder, "cases.json"), JSON.stringify(rows));
  return folder;
}

function command(...args: string[]) {
  const script = join(import.meta.dirname, "../../../gpu-runner/verify/main.ts");
  return spawnSync(process.execPath, [script, ...args, "--cache", join(scratch, "cache")], { encoding: "utf8" });
}

describe("reference cases", () => {
  test.each(cases.map(({ name }, index) => ({ name, index })))("$name", ({ index }) => {
    expect(results[index]).toMatchObject({ name: cases[index]!.name, status: "pass" });
  });

  // Other folders of cases have tests of their own beside what they are about.
  const all = join(goldens, "..");
  const known = readdirSync(all).filter(name => existsSync(join(all, name, "cases.json")));
  const kinds = new Set(known.flatMap(name => readCases(join(all, name)).map(({ kind }) => kind)));
  test.each(Object.keys(verifyKinds))("there is a case of kind %s", kind => {
    expect(kinds).toContain(kind);
  });

  test("a folder whose cases pass gets no objection", () => {
    expect(verdict(results, [...new Set(cases.map(({ kind }) => kind))], verifyKinds)).toEqual([]);
  });
});

describe("the command", () => {
  const first = (kind: string): GoldenCase => cases.find(goldenCase => goldenCase.kind === kind)!;

  test("exits 0 where the kinds asked for pass", () => {
    const { status, stdout } = command(goldens, "--kinds", "tokenizer,noise");
    expect(status).toBe(0);
    expect(stdout).toMatch(/^\d+ cases: \d+ pass, 0 FAIL, 0 unsupported$/m);
  });

  test("exits 1 and says FAIL where a number is off by more than the tolerance", () => {
    const sound = first("noise");
    const otherSeed = cases.find(({ kind, params }) => kind === "noise" && params.seed !== sound.params.seed)!;
    const { status, stdout, stderr } = command(folderWith("corrupted", [{ ...sound, expected: otherSeed.expected }, first("tokenizer")]));
    expect(status).toBe(1);
    expect(stdout).toMatch(/FAIL: draw0\[\d+\]: expected -?[\d.]+, got -?[\d.]+/);
    expect(stderr).toContain("1 of 2 cases FAIL");
  });

  test("exits 1 and shows the first difference where token ids differ", () => {
    const sound = first("tokenizer");
    const { ids } = JSON.parse(JSON.stringify(sound.expectedJson)) as { ids: number[][] };
    ids[4]![1]! += 1;
    const { status, stdout } = command(folderWith("other-ids", [{ ...sound, expectedJson: { ids } }]));
    expect(status).toBe(1);
    expect(stdout).toContain(`FAIL: ids[4][1]: expected ${ids[4]![1]}, got ${ids[4]![1]! - 1}`);
  });

  test.each([
    { kinds: "dreams", complaint: "kind dreams is unsupported" },
    { kinds: "pipeline", complaint: "kind pipeline has no case in the folder" },
    { kinds: "noise", complaint: "kind noise: every case of the folder is unsupported" },
  ])("exits 1 for --kinds $kinds without anything to verify", ({ kinds, complaint }) => {
    const unsupported = { ...first("noise"), params: { ...first("noise").params, generator: "dice" } };
    const { status, stderr } = command(folderWith(`nothing-${kinds}`, [unsupported]), "--kinds", kinds);
    expect(status).toBe(1);
    expect(stderr).toContain(complaint);
  });

  test("lists cases that it cannot run without failing", () => {
    const unsupported = { ...first("noise"), name: "other", params: { ...first("noise").params, generator: "dice" } };
    const { status, stdout } = command(folderWith("partly", [unsupported, first("noise")]), "--kinds", "noise");
    expect(status).toBe(0);
    expect(stdout).toContain("unsupported: generator dice");
  });

  test.each([
    { name: "no-kind", broken: { kind: undefined }, complaint: ": kind: " },
    { name: "no-tensors", broken: { tensors: undefined }, complaint: ": tensors: expected the file" },
    {
      name: "no-tolerance",
      broken: { tolerance: undefined },
      complaint: ": tolerance: expected a tolerance for draw0",
    },
  ])("exits 2 and names case and field: $name", ({ name, broken, complaint }) => {
    const { status, stderr } = command(folderWith(name, [{ ...first("noise"), ...broken }]));
    expect(status).toBe(2);
    expect(stderr).toContain(`case 0 (${first("noise").name})${complaint}`);
  });

  test("exits 2 without a folder", () => {
    expect(command()).toMatchObject({ status: 2, stderr: expect.stringContaining("usage: ") });
  });
});

describe("comparison", () => {
  const tensor = (...data: number[]) => ({ data, shape: [data.length] });
  const tolerance = { atol: 0.1, rtol: 0.01 };

  test("allows atol + rtol * |want| and no more", () => {
    expect(compareTensors("y", tensor(10.19, 1), tensor(10, 1), tolerance).passed).toBe(true);
    expect(compareTensors("y", tensor(10.21, 1), tensor(10, 1), tolerance)).toMatchObject({
      passed: false,
      problem: "y[0]: expected 10, got 10.21",
    });
  });

  test.each([Number.NaN, Number.POSITIVE_INFINITY])("refuses %d", value => {
    expect(compareTensors("y", tensor(1, value), tensor(1, 1), tolerance)).toMatchObject({
      passed: false,
      problem: `y[1]: expected 1, got ${value}`,
    });
  });

  test("refuses another shape", () => {
    expect(compareTensors("y", { data: [1, 2], shape: [1, 2] }, tensor(1, 2), tolerance).passed).toBe(false);
  });

  test("finds the first path at which values differ", () => {
    expect(compareJson("ids", [[1], [2, 3]], [[1], [2, 4]]).problem).toBe("ids[1][1]: expected 4, got 3");
    expect(compareJson("ids", [[1]], [[1], [2]]).passed).toBe(false);
  });
});

test("a list of cases that is none is refused", () => {
  expect(() => readCases(folderWith("object", {}))).toThrow(MalformedCases);
  const folder = folderWith("no-json", []);
  writeFileSync(join(folder, "cases.json"), readFileSync(join(goldens, "cases.json"), "utf8").slice(0, 100));
  expect(() => readCases(folder)).toThrow(/cases\.json: expected JSON/);
});
