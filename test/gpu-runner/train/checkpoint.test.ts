import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { loadCheckpoint, saveCheckpoint } from "../../../gpu-runner/train/checkpoint.ts";
import { temporaryFolder } from "../support/temporary.ts";

const progress = {
  request: "r1",
  step: 3,
  computed_ms: 12.5,
  smoothed_loss: 0.1 + 0.2,
  losses: [[1, 0.25] as [number, number]],
  validation: [],
  best: { step: 2, loss: 0.125 },
};

test("what is saved comes back bit by bit, and only for its own request and arrays", () => {
  const folder = temporaryFolder();
  const path = join(folder, "checkpoint.safetensors");
  const values = Float32Array.from([1, -0, 1e-42, Math.PI]);
  const moments = Uint8Array.from([0, 255, 7]);
  saveCheckpoint(
    path,
    new Map<string, Float32Array | Uint8Array>([
      ["values", values],
      ["moments", moments],
    ]),
    progress,
  );
  expect(readdirSync(folder)).toEqual(["checkpoint.safetensors"]);
  const into = { values: new Float32Array(4), moments: new Uint8Array(3) };
  const arrays = new Map<string, Float32Array | Uint8Array>(Object.entries(into));
  expect(loadCheckpoint(path, arrays, "r1")).toEqual(progress);
  expect(new Uint8Array(into.values.buffer)).toEqual(new Uint8Array(values.buffer));
  expect(into.moments).toEqual(moments);
  expect(() => loadCheckpoint(path, arrays, "r2")).toThrow(/request: expected r2, got r1/);
  expect(() => loadCheckpoint(path, new Map([["values", new Float32Array(5)]]), "r1")).toThrow(/values: expected F32 \[5\], got F32 \[4\]/);
  expect(() => loadCheckpoint(path, new Map([["values", into.values]]), "r1")).toThrow(/moments/);
  writeFileSync(path, "broken");
  expect(() => loadCheckpoint(path, arrays, "r1")).toThrow();
});
