/**
 * Where a graph's weights lie. ONNX Runtime maps fp32 at offsets that are multiples of 4 straight from a file on the CPU;
 * everything else is widened once into a sidecar in the cache, named by the content it was made from.
 */
import { randomUUID } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { CacheError } from "./cache-error.ts";
import { ModelError } from "./model-error.ts";
import { dtypeBytes, type SafetensorsEntry, type SafetensorsFile, withSafetensors } from "./safetensors.ts";
import { bytesOf, writeSafetensors } from "./safetensors-write.ts";

/** A memory page, and more than any provider's alignment. */
const alignment = 4096;
/** Elements widened at a time. */
const chunk = 1 << 22;

/**
 * A file with the same tensors as fp32 at offsets that can be mapped: the file itself, or its sidecar, made if need be.
 * `sha256` is the file's own hash. Throws CacheError where the cache cannot be written; no partial file is left.
 */
export function placeFloat32(path: string, sha256: string, cacheDir: string): string {
  return withSafetensors(path, source => {
    const floats = [...source.entries.values()].filter(({ name }) => source.isFloat(name));
    if (floats.length === 0) throw new ModelError(path, "file", "floating-point tensors", "none");
    if (floats.every(entry => entry.dtype === "F32" && entry.offset % 4 === 0)) return path;
    const sidecar = join(cacheDir, "weights", `${sha256}.f32.safetensors`);
    if (!existsSync(sidecar)) writeSidecar(source, floats, sidecar, cacheDir);
    return sidecar;
  });
}

function writeSidecar(source: SafetensorsFile, floats: readonly SafetensorsEntry[], sidecar: string, cacheDir: string): void {
  const temporary = `${sidecar}.${randomUUID()}.tmp`;
  try {
    mkdirSync(dirname(sidecar), { recursive: true });
    const tensors = floats.map(({ name, shape }) => ({ name, dtype: "F32" as const, shape, data: () => widened(source, name) }));
    try {
      writeSafetensors(temporary, tensors, { align: alignment });
      renameSync(temporary, sidecar);
    } catch (error) {
      rmSync(temporary, { force: true });
      throw error;
    }
  } catch (error) {
    throw error instanceof ModelError ? error : new CacheError(cacheDir, error);
  }
}

function* widened(source: SafetensorsFile, name: string): Generator<Uint8Array> {
  const { byteLength, dtype } = source.entry(name);
  const elements = byteLength / dtypeBytes[dtype];
  for (let start = 0; start < elements; start += chunk) yield bytesOf(source.readFloat32(name, start, Math.min(chunk, elements - start)));
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
    removeStale(parent);
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

/** Session folders live for the seconds of a session's making; an hour-old one is what a killed process left. */
function removeStale(parent: string): void {
  for (const name of readdirSync(parent)) {
    const folder = join(parent, name);
    const age = Date.now() - (statSync(folder, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
    if (age > 3_600_000) rmSync(folder, { recursive: true, force: true });
  }
}
