/** Every key of a model's weight files, sorted: a tensor of a part, passed over for a reason, or unknown. */
import type { ComponentName, KeyUse } from "./key-layouts.ts";
import { ModelError } from "./model-error.ts";
import type { ModelSource } from "./model-source.ts";
import { dtypeBytes, type SafetensorsEntry, withSafetensors } from "./safetensors.ts";

/** A tensor of a part as its file has it. */
export interface SourceTensor extends KeyUse {
  file: string;
  entry: SafetensorsEntry;
  /** As the graphs see it: of the piece, and turned where it is stored so. */
  shape: readonly number[];
}

export interface SortedKeys {
  /** By part and by the name that the graphs use. */
  tensors: ReadonlyMap<ComponentName, ReadonlyMap<string, SourceTensor>>;
  skipped: readonly { file: string; key: string; why: string }[];
  unknown: readonly { file: string; key: string; shape: readonly number[] }[];
}

/** Reads the headers of all weight files. Throws ModelError where two keys are the same tensor. */
export function sortKeys({ weights }: ModelSource): SortedKeys {
  const tensors = new Map<ComponentName, Map<string, SourceTensor>>();
  const skipped: { file: string; key: string; why: string }[] = [];
  const unknown: { file: string; key: string; shape: readonly number[] }[] = [];
  for (const { file, keys } of weights) {
    const entries = withSafetensors(file, source => [...source.entries.values()]);
    for (const entry of entries) {
      const fate = keys(entry.name);
      if (fate === null) unknown.push({ file, key: entry.name, shape: entry.shape });
      else if ("skipped" in fate) skipped.push({ file, key: entry.name, why: fate.skipped });
      else for (const use of fate) insert(tensors, { ...use, file, entry, shape: shapeOf(use, entry, file) });
    }
  }
  return { tensors, skipped, unknown };
}

function insert(tensors: Map<ComponentName, Map<string, SourceTensor>>, tensor: SourceTensor): void {
  const part = tensors.get(tensor.component) ?? new Map<string, SourceTensor>();
  tensors.set(tensor.component, part);
  const twin = part.get(tensor.name);
  if (twin) throw new ModelError(tensor.file, tensor.entry.name, `one key for ${tensor.name}`, `${twin.entry.name} as well`);
  part.set(tensor.name, tensor);
}

function shapeOf({ piece, transposed }: KeyUse, { name, shape }: SafetensorsEntry, file: string): readonly number[] {
  const [rows, ...rest] = shape;
  if (piece && (rows === undefined || rows % piece.of !== 0))
    throw new ModelError(file, name, `a first axis of ${piece.of} equal pieces`, `[${shape}]`);
  const taken = piece ? [rows! / piece.of, ...rest] : shape;
  return transposed ? taken.toReversed() : taken;
}

/** Elements of a tensor. */
export function elementsOf({ entry, piece }: SourceTensor): number {
  return entry.byteLength / dtypeBytes[entry.dtype] / (piece?.of ?? 1);
}
