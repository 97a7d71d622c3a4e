/** A private copy of the reference model's folder, to be damaged by a test. */
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describeSource, type ModelDescription } from "../../../gpu-runner/weights/describe.ts";
import { hashModel, openModel } from "../../../gpu-runner/weights/model-source.ts";
import { withSafetensors } from "../../../gpu-runner/weights/safetensors.ts";
import { type TensorToWrite, writeSafetensors } from "../../../gpu-runner/weights/safetensors-write.ts";
import { temporaryFolder } from "./temporary.ts";

export const goldens = join(import.meta.dirname, "../../goldens/base");
export const goldenModel = join(goldens, "models/sd15");

export async function describeModel(path: string): Promise<ModelDescription> {
  const source = openModel(path);
  return describeSource(source, (await hashModel(source)).hash);
}

export function copyModel(): string {
  const folder = join(temporaryFolder(), "model");
  cpSync(goldenModel, folder, { recursive: true });
  return folder;
}

/** Changes keys of a JSON file; undefined removes one. */
export function editJson(file: string, changes: Readonly<Record<string, unknown>>): void {
  const edited: unknown = { ...JSON.parse(readFileSync(file, "utf8")), ...changes };
  rmSync(file);
  writeFileSync(file, JSON.stringify(edited));
}

/** Rewrites a weight file with its list of tensors changed. */
export function editWeights(file: string, change: (tensors: TensorToWrite[]) => TensorToWrite[]): void {
  const tensors = withSafetensors(file, source =>
    [...source.entries.values()].map(({ name, dtype, shape }): TensorToWrite => {
      const bytes = source.readBytes(name);
      return { name, dtype, shape, data: () => [bytes] };
    }),
  );
  rmSync(file);
  writeSafetensors(file, change(tensors));
}

/** The same weights in fp32. */
export function widenWeights(file: string): void {
  const floats = withSafetensors(file, source => new Map([...source.entries.keys()].map(name => [name, source.readFloat32(name)])));
  editWeights(file, tensors =>
    tensors.map(({ name, shape }) => ({ name, shape, dtype: "F32", data: () => [new Uint8Array(floats.get(name)!.buffer)] })),
  );
}
