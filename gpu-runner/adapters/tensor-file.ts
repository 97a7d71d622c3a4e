/** The tensors of an adapter's file, whether safetensors or `torch.save`, under flat names and widened to fp32 on demand. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import type { ByteSource } from "../../shared/adapters/byte-source.ts";
import { flatTensors, kindOf, type PickleDict } from "../../shared/adapters/pickle.ts";
import { isTorchFile, readTorchFile, torchStartBytes } from "../../shared/adapters/torch-file.ts";
import { FileError } from "../../shared/file-error.ts";
import { dtypeBytes, parseSafetensorsHeader, type SafetensorsDtype, safetensorsHeaderBytes } from "../../shared/safetensors-header.ts";
import { ModelError } from "../weights/model-error.ts";
import { widenToFloat32 } from "../weights/safetensors.ts";

export interface TensorInfo {
  dtype: SafetensorsDtype;
  shape: readonly number[];
}

export interface TensorFile {
  /** For messages. */
  path: string;
  /** Of safetensors. */
  metadata: Readonly<Record<string, string>>;
  /** By name; in a `torch.save` file the keys that lead to it, joined by dots. */
  tensors: ReadonlyMap<string, TensorInfo>;
  /** What a `torch.save` file holds; null for safetensors. */
  pickled: PickleDict | null;
  /** All elements row by row; integers as they are. Throws ModelError where there is none of this name. */
  read(name: string): Float32Array;
}

interface Located extends TensorInfo {
  offset: number;
  byteLength: number;
}

/** Opens a file for the length of one function. Throws ModelError for what breaks its format or could run code. */
export async function withTensorFile<T>(path: string, use: (file: TensorFile) => T | Promise<T>): Promise<T> {
  const descriptor = openSync(path, "r");
  try {
    return await use(await readTensorFile(path, descriptor));
  } catch (error) {
    throw error instanceof FileError ? new ModelError(path, error.key, error.expected, error.got) : error;
  } finally {
    closeSync(descriptor);
  }
}

async function readTensorFile(path: string, descriptor: number): Promise<TensorFile> {
  const source = fileSource(descriptor);
  const start = await source.read(0, Math.min(torchStartBytes, source.size));
  const { metadata, tensors, pickled } = isTorchFile(start) ? await openTorch(source) : await openSafetensors(source, start);
  return {
    path,
    metadata,
    tensors,
    pickled,
    read(name) {
      const found = tensors.get(name);
      if (!found) throw new ModelError(path, name, "a tensor of this name", "none");
      const bytes = new Uint8Array(found.byteLength);
      readFully(descriptor, bytes, found.offset);
      const values = widenToFloat32(found.dtype, bytes);
      if (!values) throw new ModelError(path, name, "a tensor of numbers", found.dtype);
      return values;
    },
  };
}

interface Opened {
  metadata: Readonly<Record<string, string>>;
  tensors: ReadonlyMap<string, Located>;
  pickled: PickleDict | null;
}

async function openSafetensors(source: ByteSource, start: Uint8Array): Promise<Opened> {
  const raw = await source.read(8, safetensorsHeaderBytes(start, source.size));
  const { metadata, entries } = parseSafetensorsHeader(raw, source.size);
  return { metadata, tensors: entries, pickled: null };
}

async function openTorch(source: ByteSource): Promise<Opened> {
  const { root, locate } = await readTorchFile(source);
  if (!(root instanceof Map)) throw new FileError("pickle", "a dictionary", kindOf(root));
  const tensors = new Map<string, Located>();
  let total = 0;
  for (const [name, tensor] of flatTensors(root)) {
    const { storage, shape } = tensor;
    const width = dtypeBytes[storage.dtype];
    const byteLength = shape.reduce((product, dim) => product * dim, width);
    total += byteLength;
    // Views of one storage could make a small file large.
    if (total > source.size) throw new FileError(name, "tensors that share no memory", `${total} bytes in a file of ${source.size}`);
    tensors.set(name, { dtype: storage.dtype, shape, offset: (await locate(storage)) + tensor.offset * width, byteLength });
  }
  return { metadata: {}, tensors, pickled: root };
}

/** An open file on the disk. */
export function fileSource(descriptor: number): ByteSource {
  return {
    size: fstatSync(descriptor).size,
    async read(offset, length) {
      const bytes = new Uint8Array(length);
      readFully(descriptor, bytes, offset);
      return bytes;
    },
  };
}

function readFully(descriptor: number, into: Uint8Array, position: number): void {
  for (let done = 0; done < into.length; ) {
    const read = readSync(descriptor, into, done, Math.min(into.length - done, 1 << 30), position + done);
    if (read === 0) throw new FileError(`byte ${position + done}`, `${into.length - done} bytes more`, "the end of the file");
    done += read;
  }
}
