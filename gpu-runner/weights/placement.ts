/**
 * Where a graph's weights lie. ONNX Runtime maps fp32 at offsets that are multiples of 4 straight from a file on the CPU;
 * everything else is widened (and turned where it is stored transposed) once into a sidecar in the cache, named by the content
 * it was made from.
 */
import { createHash } from "node:crypto";
import { copyFileSync, linkSync, mkdirSync, mkdtempSync, realpathSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import type { StoredTensor } from "../graph/ir.ts";
import { CacheError } from "./cache-error.ts";
import { deriveFile, removeAbandoned } from "./derived-files.ts";
import { ModelError } from "./model-error.ts";
import { dtypeBytes, type SafetensorsFile, withSafetensors } from "./safetensors.ts";
import { bytesOf, pageBytes, writeSafetensors } from "./safetensors-write.ts";
import { elementsOf, type SourceTensor } from "./sorted-keys.ts";

/** Elements widened at a time. */
const chunk = 1 << 18;

/**
 * A file with the same tensors as fp32 at offsets that can be mapped: the file itself, or a sidecar. `sha256` is the file's own
 * hash. Throws CacheError where the cache cannot be written; no partial file is left.
 */
export function placeFloat32(path: string, sha256: string, cacheDir: string): string {
  const floats = withSafetensors(path, source => [...source.entries.values()].filter(({ name }) => source.isFloat(name)));
  if (floats.length === 0) throw new ModelError(path, "file", "floating-point tensors", "none");
  if (floats.every(entry => mapsInPlace({ entry }))) return path;
  return sidecarOf(
    path,
    sha256,
    floats.map(entry => ({ entry })),
    cacheDir,
  ).file;
}

/**
 * Tensors of one file as fp32 that can be mapped: where they lie, or in a sidecar, made if need be. `sha256` is the file's own
 * hash. The result is in the order of `wanted`. Throws CacheError where the cache cannot be written; no partial file is left.
 */
export function placeTensors(wanted: readonly SourceTensor[], path: string, sha256: string, cacheDir: string): StoredTensor[] {
  const rewritten = new Map(wanted.filter(tensor => !mapsInPlace(tensor)).map(tensor => [tensor.entry.name, tensor]));
  const sidecar = rewritten.size > 0 ? sidecarOf(path, sha256, [...rewritten.values()], cacheDir) : null;
  return wanted.map(tensor => {
    const { name, piece, shape, entry } = tensor;
    const at = mapsInPlace(tensor)
      ? { file: path, offset: entry.offset }
      : { file: sidecar!.file, offset: sidecar!.offsets.get(entry.name)! };
    const byteLength = 4 * elementsOf(tensor);
    return { key: name, file: at.file, offset: at.offset + (piece?.index ?? 0) * byteLength, byteLength, shape };
  });
}

type Rewritten = Pick<SourceTensor, "entry" | "transposed">;

function mapsInPlace({ entry, transposed }: Rewritten): boolean {
  return entry.dtype === "F32" && entry.offset % 4 === 0 && !transposed;
}

/** A file of the given tensors in fp32, named by what it was made from. */
function sidecarOf(path: string, sha256: string, tensors: readonly Rewritten[], cacheDir: string) {
  const selection = tensors.map(({ entry, transposed }) => [entry.name, transposed ?? false]);
  const digest = createHash("sha256").update(JSON.stringify(selection)).digest("hex").slice(0, 16);
  const file = deriveFile(cacheDir, "weights", `${sha256}.${digest}.f32.safetensors`, temporary =>
    withSafetensors(path, source => writeSidecar(source, tensors, temporary)),
  );
  const offsets = withSafetensors(file, sidecar => new Map([...sidecar.entries.values()].map(({ name, offset }) => [name, offset])));
  return { file, offsets };
}

function writeSidecar(source: SafetensorsFile, rewritten: readonly Rewritten[], file: string): void {
  const tensors = rewritten.map(({ entry: { name, shape }, transposed }) => ({
    name,
    dtype: "F32" as const,
    shape: transposed ? shape.toReversed() : shape,
    data: () => (transposed ? [turned(source, name)] : widened(source, name)),
  }));
  writeSafetensors(file, tensors, { align: pageBytes });
}

function* widened(source: SafetensorsFile, name: string): Generator<Uint8Array> {
  const { byteLength, dtype } = source.entry(name);
  const elements = byteLength / dtypeBytes[dtype];
  for (let start = 0; start < elements; start += chunk) yield bytesOf(source.readFloat32(name, start, Math.min(chunk, elements - start)));
}

/** A matrix with rows as columns. */
function turned(source: SafetensorsFile, name: string): Uint8Array {
  const [rows, columns] = source.entry(name).shape as [number, number];
  const values = source.readFloat32(name);
  return bytesOf(values.map((_, i) => values[(i % rows) * columns + Math.floor(i / rows)]!));
}

/**
 * A fresh folder with the given files under names of its own: ONNX Runtime refuses external data outside the model's
 * folder, also through symbolic links. Hard links where the file system allows, else copies. Throws CacheError.
 */
export function linkIntoFolder(files: readonly string[], cacheDir: string): { folder: string; names: string[] } {
  const parent = join(cacheDir, "sessions");
  let folder: string | undefined;
  try {
    mkdirSync(parent, { recursive: true });
    removeAbandoned(parent, () => true);
    folder = mkdtempSync(join(parent, "s-"));
    const names = files.map((file, i) => `${i}-${basename(file)}`);
    for (const [i, file] of files.entries()) linkOrCopy(file, join(folder, names[i]!));
    return { folder, names };
  } catch (error) {
    if (folder) rmSync(folder, { recursive: true, force: true });
    throw new CacheError(cacheDir, error);
  }
}

function linkOrCopy(from: string, to: string): void {
  try {
    // Hub caches hold symbolic links; a hard link to one of those would lead out of the folder again.
    linkSync(realpathSync(from), to);
  } catch (error) {
    // Another file system, or another owner's file where the kernel protects hard links.
    const code = error instanceof Error && "code" in error ? error.code : "";
    if (code !== "EXDEV" && code !== "EPERM" && code !== "EMLINK" && code !== "ENOTSUP") throw error;
    copyFileSync(from, to);
  }
}
