/** What the headers of an adapter's files tell: names, types and shapes of tensors, and small JSON. No tensor is read. */
import { FileError } from "../file-error.ts";
import { parseJson } from "../json.ts";
import { parseSafetensorsHeader, type SafetensorsDtype, safetensorsHeaderBytes } from "../safetensors-header.ts";
import type { ByteSource } from "./byte-source.ts";
import { flatTensors, kindOf, type PickleDict } from "./pickle.ts";
import { isTorchFile, readTorchFile, torchStartBytes } from "./torch-file.ts";

export interface TensorHeader {
  dtype: SafetensorsDtype;
  shape: readonly number[];
}

export type AdapterContent =
  | {
      format: "tensors";
      path: string;
      tensors: ReadonlyMap<string, TensorHeader>;
      metadata: Readonly<Record<string, string>>;
      /** Of a `torch.save` file; null for safetensors. */
      pickled: PickleDict | null;
    }
  | { format: "json"; path: string; value: unknown };
export type TensorContent = Extract<AdapterContent, { format: "tensors" }>;

const maxJsonBytes = 1 << 20;

/** Throws FileError for a file that is neither safetensors nor `torch.save` data nor, by its name, JSON. */
export async function readAdapterContent(path: string, source: ByteSource): Promise<AdapterContent> {
  if (path.endsWith(".json")) return { format: "json", path, value: await readJson(source) };
  const start = await source.read(0, Math.min(torchStartBytes, source.size));
  if (!isTorchFile(start)) {
    const raw = await source.read(8, safetensorsHeaderBytes(start, source.size));
    const { metadata, entries } = parseSafetensorsHeader(raw, source.size);
    return { format: "tensors", path, tensors: entries, metadata, pickled: null };
  }
  const { root } = await readTorchFile(source);
  if (!(root instanceof Map)) throw new FileError("pickle", "a dictionary", kindOf(root));
  const tensors = new Map([...flatTensors(root)].map(([name, { storage, shape }]) => [name, { dtype: storage.dtype, shape }]));
  return { format: "tensors", path, tensors, metadata: {}, pickled: root };
}

async function readJson(source: ByteSource): Promise<unknown> {
  if (source.size > maxJsonBytes) throw new FileError("file", `JSON of at most ${maxJsonBytes} bytes`, `${source.size} bytes`);
  const value = parseJson(new TextDecoder().decode(await source.read(0, source.size)));
  return value ?? fail("file", "JSON", "another text");
}

function fail(key: string, expected: string, got: string): never {
  throw new FileError(key, expected, got);
}
