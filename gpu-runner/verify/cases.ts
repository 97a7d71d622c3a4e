/** Reads a folder of reference cases: `cases.json` and the tensors beside it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { type SafetensorsFile, withSafetensors } from "../weights/safetensors.ts";
import type { GoldenCase, GoldenTensor } from "./kind.ts";

const toleranceSchema = z.object({ atol: z.number().min(0), rtol: z.number().min(0) });
const tensorNames = z.record(z.string(), z.string());

const adapterSchema = z.object({
  file: z.string(),
  kind: z.string(),
  weight: z.number(),
  token: z.string().optional(),
  textEncoder: z.int().positive().optional(),
  start: z.number().optional(),
  end: z.number().optional(),
});

const caseSchema = z
  .object({
    name: z.string(),
    kind: z.string(),
    model: z.string().optional(),
    adapters: z.array(adapterSchema).optional(),
    params: z.record(z.string(), z.unknown()).default({}),
    tensors: z.string().optional(),
    inputs: tensorNames.default({}),
    expected: tensorNames.default({}),
    expectedJson: z.record(z.string(), z.unknown()).optional(),
    tolerance: toleranceSchema.optional(),
    tolerances: z.record(z.string(), toleranceSchema).optional(),
    reference: z.string().optional(),
  })
  .superRefine((row, context) => {
    const fail = (field: string, message: string) => context.addIssue({ code: "custom", path: [field], message });
    const outputs = Object.keys(row.expected);
    if (outputs.length === 0 && row.expectedJson === undefined) fail("expected", "expected at least one output here or in expectedJson");
    if (row.tensors === undefined && outputs.length + Object.keys(row.inputs).length > 0)
      fail("tensors", "expected the file of the tensors");
    const untold = outputs.filter(output => !row.tolerance && !row.tolerances?.[output]);
    if (untold.length > 0) fail("tolerance", `expected a tolerance for ${untold.join(", ")}`);
  });

/** `cases.json` does not have the format; the message names the case and the field. */
export class MalformedCases extends Error {
  override readonly name = "MalformedCases";
}

/** @throws MalformedCases, or the system's error where the file can't be read */
export function readCases(folder: string): GoldenCase[] {
  const path = join(folder, "cases.json");
  const rows = z.array(z.unknown()).safeParse(parseJson(path));
  if (!rows.success) throw new MalformedCases(`${path}: expected a list of cases`);
  const seen = new Set<string>();
  return rows.data.map((row, index) => {
    const label = `${path}: case ${index} (${caseName(row)})`;
    const parsed = caseSchema.safeParse(row);
    if (!parsed.success) {
      const [issue] = parsed.error.issues;
      throw new MalformedCases(`${label}: ${issue!.path.join(".") || "case"}: ${issue!.message}`);
    }
    if (seen.has(parsed.data.name)) throw new MalformedCases(`${label}: name: expected a name of its own, got one used before`);
    seen.add(parsed.data.name);
    return parsed.data;
  });
}

function parseJson(path: string): unknown {
  const text = readFileSync(path, "utf8");
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new MalformedCases(`${path}: expected JSON: ${error instanceof Error ? error.message : error}`);
  }
}

function caseName(row: unknown): string {
  const named = z.object({ name: z.string() }).safeParse(row);
  return named.success ? named.data.name : "without a name";
}

/** A tensor of a case's file. @throws MalformedCases naming the case, SafetensorsError */
export function readTensor(folder: string, goldenCase: GoldenCase, name: string): GoldenTensor {
  if (goldenCase.tensors === undefined) throw new MalformedCases(`case ${goldenCase.name}: tensors: expected the file of ${name}`);
  return withSafetensors(join(folder, goldenCase.tensors), file => ({ data: readNumbers(file, name), shape: file.entry(name).shape }));
}

function readNumbers(file: SafetensorsFile, name: string): Float32Array | Int32Array {
  return file.entry(name).dtype === "I32" ? new Int32Array(file.readBytes(name).buffer) : file.readFloat32(name);
}
