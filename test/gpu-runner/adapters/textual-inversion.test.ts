import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { adapterDiskFiles } from "../../../gpu-runner/adapters/content-hash.ts";
import { openTextualInversion } from "../../../gpu-runner/adapters/textual-inversion.ts";
import { bytesOf, writeSafetensors } from "../../../gpu-runner/weights/safetensors-write.ts";

const scratch = mkdtempSync(join(tmpdir(), "atelier-inversion-test-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const encoder = (width: number) => new Map([["embeddings.token_embedding.weight", [100, width]]]);
const bases = {
  sd1: { textEncoder: encoder(6) },
  sdxl: { textEncoder: encoder(6), textEncoder2: encoder(10) },
  refiner: { textEncoder2: encoder(10) },
};

function open(tensors: Record<string, number[]>, base: keyof typeof bases) {
  const path = join(scratch, `${Math.random().toString(36).slice(2)}.safetensors`);
  writeSafetensors(
    path,
    Object.entries(tensors).map(([name, shape]) => {
      const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i);
      return { name, dtype: "F32" as const, shape, data: () => [bytesOf(data)] };
    }),
  );
  return openTextualInversion(adapterDiskFiles(path), `sha256:${"0".repeat(64)}`, bases[base]);
}

describe("layouts of textual inversions", () => {
  it.each([
    ["a token and one row", { "<cat>": [6] }, "sd1", "diffusers", [[1, 6]]],
    ["OneTrainer, with rows for the result", { emp_params: [3, 6], emp_params_out: [3, 6] }, "sd1", "onetrainer", [[3, 6]]],
    [
      "Replicate",
      { text_encoders_0: [2, 6], text_encoders_1: [2, 10] },
      "sdxl",
      "replicate",
      [
        [2, 6],
        [2, 10],
      ],
    ],
    ["SDXL's pair on the refiner, whose encoder is the second", { clip_l: [2, 6], clip_g: [2, 10] }, "refiner", "clip_l-clip_g", [[2, 10]]],
    ["rows of the second width alone", { emb_params: [2, 10] }, "sdxl", "kohya", [null, [2, 10]]],
  ] as [string, Record<string, number[]>, keyof typeof bases, string, (number[] | null)[]][])(
    "%s",
    async (_, tensors, base, layout, shapes) => {
      const { vectors, report } = await open(tensors, base);
      expect(vectors.map(rows => rows?.shape ?? null)).toEqual(shapes);
      expect(report.layout).toBe(layout);
      // Every key is told of.
      expect([...report.used, ...report.skipped.map(({ key }) => key)].sort()).toEqual(Object.keys(tensors).sort());
    },
  );

  it.each([
    [
      "a pair on a base with one encoder",
      { clip_l: [2, 6], clip_g: [2, 10] },
      "sd1",
      /clip_g: expected a width of the base's text encoders \(6\), got 10/,
    ],
    ["pairs of unequal length", { clip_l: [2, 6], clip_g: [3, 10] }, "sdxl", /rows: expected as many for each text encoder, got 2 and 3/],
    ["rows for the result alone", { emp_params_out: [2, 6] }, "sd1", /emp_params_out: expected rows for the text encoder's input/],
    [
      "another tensor beside",
      { emb_params: [2, 6], extra: [1, 1] },
      "sd1",
      /extra: expected a tensor of the textual inversion layout kohya/,
    ],
  ] as [string, Record<string, number[]>, keyof typeof bases, RegExp][])("refuses %s", async (_, tensors, base, message) => {
    await expect(open(tensors, base)).rejects.toThrow(message);
  });
});
