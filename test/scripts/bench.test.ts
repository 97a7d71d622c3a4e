import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { parseOptions, UsageError } from "../../bench/options.ts";
import { median, medianRatio } from "../../bench/statistics.ts";
import { formatTable } from "../../bench/table.ts";

const run = promisify(execFile);
const bench = (...args: string[]) => run(process.execPath, ["bench/main.ts", ...args], { env: { ...process.env, ATELIER_PYTHON: "" } });
const documentSchema = z.object({
  machine: z.object({ processor: z.string(), cores: z.int().positive() }),
  results: z.array(
    z.object({ benchmark: z.string(), about: z.string(), rows: z.array(z.record(z.string(), z.union([z.string(), z.number()]))) }),
  ),
});

const tinyUnet = {
  _class_name: "UNet2DConditionModel",
  down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D"],
  up_block_types: ["CrossAttnUpBlock2D", "UpBlock2D"],
  block_out_channels: [16, 32],
  layers_per_block: 1,
  attention_head_dim: 2,
  cross_attention_dim: 24,
  norm_num_groups: 8,
};

describe("npm run bench", () => {
  it("measures LoRAs beside the plain step, and a mixed batch beside an unmixed one", async () => {
    const folder = mkdtempSync(join(tmpdir(), "atelier-bench-test-"));
    try {
      const config = join(folder, "config.json");
      writeFileSync(config, JSON.stringify(tinyUnet));
      const { stdout } = await bench("adapters", "--json", "--unet", config, "--sizes", "64", "--rounds", "2");
      const { results } = documentSchema.parse(JSON.parse(stdout));
      expect(results[0]?.rows.map(({ what, beside }) => [what, beside])).toEqual([
        ["no LoRA", "no LoRA"],
        ["one LoRA", "no LoRA"],
        ["four LoRAs", "no LoRA"],
        ["batch of 2, the same LoRA", "batch of 2, the same LoRA"],
        ["batch of 2, each its own", "batch of 2, the same LoRA"],
      ]);
      for (const row of results[0]?.rows ?? []) expect(row.ratio).toBeGreaterThan(0);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("measures a UNet of any geometry, and goes on without a peer that does not start", async () => {
    const folder = mkdtempSync(join(tmpdir(), "atelier-bench-test-"));
    try {
      const config = join(folder, "config.json");
      writeFileSync(config, JSON.stringify(tinyUnet));
      // Node in Python's place: it ends without an answer, as a broken Python would.
      const { stdout, stderr } = await bench(
        "unet",
        "--json",
        "--unet",
        config,
        "--sizes",
        "64,96",
        "--rounds",
        "2",
        "--python",
        process.execPath,
      );
      const { results } = documentSchema.parse(JSON.parse(stdout));
      expect(results.map(({ benchmark }) => benchmark)).toEqual(["unet"]);
      expect(results[0]?.rows.map(({ px, what }) => [px, what])).toEqual([
        [64, "Atelier"],
        [96, "Atelier"],
      ]);
      for (const row of results[0]?.rows ?? []) {
        expect(row["min s"]).toBeGreaterThan(0);
        expect(row["median s"]).toBeGreaterThanOrEqual(Number(row["min s"]));
        expect(row["ours / it"]).toBe(1);
        expect(row["peak MB"]).toBeGreaterThan(10);
      }
      expect(stderr).toMatch(/PyTorch is left out: .*unet_torch\.py/);
      expect(stderr).toMatch(/OpenVINO is left out: .*unet_openvino\.py/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("draws a model folder's pictures and prints their row", async () => {
    const { stdout } = await bench("pocket", "--rounds", "1", "--threads", "1", "--model", "test/goldens/base/models/sd15");
    const [heads, cells] = stdout
      .trimEnd()
      .split("\n")
      .slice(-2)
      .map(line => line.trim().split(/ {2,}/));
    expect(heads).toEqual(["size", "pictures/min", "median s", "min s", "load s", "first picture s", "RSS MB", "peak MB"]);
    expect(cells?.[0]).toBe("64x64");
    expect(Number(cells?.[1]) * Number(cells?.[2])).toBeCloseTo(60, -1);
  });

  it("says what a wrong command line should be", async () => {
    const failed = await bench("pockets").catch((error: { code: number; stderr: string }) => error);
    expect(failed).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("Expected a benchmark (unet, adapters, load, pocket, cache, start, train), got pockets."),
    });
    expect(() => parseOptions(["--rounds", "0"])).toThrow(UsageError);
    expect(() => parseOptions(["--sizes", "256,100"])).toThrow(/--sizes 1: /);
    expect(parseOptions(["unet", "--sizes", "256", "--rounds", "7"])).toMatchObject({
      names: ["unet"],
      sizes: [256],
      rounds: 7,
      threads: 2,
    });
  });
});

describe("its arithmetic", () => {
  it("takes the middle", () => {
    expect(median([3])).toBe(3);
    expect(median([9, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(medianRatio([1, 20, 3], [2, 20, 12])).toBe(0.5);
  });

  it("lays rows out in columns of three significant digits", () => {
    expect(
      formatTable([
        { what: "a", s: 0.012345, n: 1234.6 },
        { what: "bc", s: 12.345 },
      ]),
    ).toBe("what       s     n\na     0.0123  1235\nbc      12.3      ");
  });
});
