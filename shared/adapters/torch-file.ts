/** Files of `torch.save`, read as data: the zip of today (torch/csrc/jit/serialization) and the row of pickles before version 1.6. */
import { FileError } from "../file-error.ts";
import { dtypeBytes, type SafetensorsDtype } from "../safetensors-header.ts";
import type { ByteSource } from "./byte-source.ts";
import { type PickleStorage, PickleTensor, type PickleValue, readPickle } from "./pickle.ts";
import { entryOffset, readStoredZip, type StoredEntry } from "./stored-zip.ts";

export interface TorchFile {
  root: PickleValue;
  /** Where a storage's bytes begin in the file. Throws FileError where it is missing or shorter than its tensors say. */
  locate(storage: PickleStorage): Promise<number>;
}

const maxPickleBytes = 4 << 20;
const legacyMagic = 0x1950a86a20f9469cfc6cn;

/** Bytes of a file's start that `isTorchFile` looks at. */
export const torchStartBytes = 9;

/**
 * Whether a file begins as one of `torch.save`: a zip, or a pickle of protocol 2 and above. Safetensors may begin with any length, but the
 * ninth byte opens their JSON.
 */
export function isTorchFile(start: Uint8Array): boolean {
  if (start[8] === 0x7b) return false;
  return (start[0] === 0x50 && start[1] === 0x4b) || start[0] === 0x80;
}

/** Throws FileError, also for what could run code if Python loaded it. */
export async function readTorchFile(source: ByteSource): Promise<TorchFile> {
  const [first] = await source.read(0, Math.min(1, source.size));
  return first === 0x80 ? readLegacy(source) : readZip(source);
}

async function readZip(source: ByteSource): Promise<TorchFile> {
  const entries = await readStoredZip(source);
  const pickles = [...entries.keys()].filter(name => name === "data.pkl" || name.endsWith("/data.pkl"));
  const [name] = pickles;
  if (name === undefined || pickles.length > 1) throw new FileError("zip directory", "one data.pkl", `${pickles.length} of them`);
  const prefix = name.slice(0, -"data.pkl".length);
  const read = async (entry: StoredEntry) => source.read(await entryOffset(source, entry), entry.byteLength);
  const order = entries.get(`${prefix}byteorder`);
  if (order && new TextDecoder().decode(await read(order)) !== "little") throw new FileError(`${prefix}byteorder`, "little", "another");
  const pickle = entries.get(name)!;
  if (pickle.byteLength > maxPickleBytes) throw new FileError(name, `at most ${maxPickleBytes} bytes`, String(pickle.byteLength));
  const { value } = readPickle(await read(pickle));
  return {
    root: value,
    async locate(storage) {
      const entry = requireStorage(storage, entries.get(`${prefix}data/${storage.key}`));
      return entryOffset(source, entry);
    },
  };
}

/** Five pickles: magic number, protocol, system, the object, the storages' keys; then each storage with its length before it. */
async function readLegacy(source: ByteSource): Promise<TorchFile> {
  const bytes = await source.read(0, Math.min(source.size, maxPickleBytes));
  const magic = readPickle(bytes);
  if (magic.value !== legacyMagic) throw new FileError("file", "torch's magic number in the first pickle", "another value");
  const protocol = readPickle(bytes, magic.end);
  const system = readPickle(bytes, protocol.end);
  if (protocol.value !== 1001) throw new FileError("protocol", "1001", String(protocol.value));
  if (!(system.value instanceof Map) || system.value.get("little_endian") !== true)
    throw new FileError("system", "little_endian: True", "another");
  const root = readPickle(bytes, system.end);
  const keys = readPickle(bytes, root.end);
  const dtypes = storageTypes(root.value);
  if (!Array.isArray(keys.value)) throw new FileError("storages", "a list of keys", "another value");
  const storages = new Map<string, { offset: number; byteLength: number }>();
  let offset = keys.end;
  for (const key of keys.value) {
    const dtype = typeof key === "string" ? dtypes.get(key) : undefined;
    if (typeof key !== "string" || !dtype || storages.has(key)) throw new FileError("storages", "the keys of the tensors", String(key));
    if (offset + 8 > source.size) throw new FileError(`storage ${key}`, "a length", "the end of the file");
    const head = await source.read(offset, 8);
    const elements = new DataView(head.buffer, head.byteOffset).getBigUint64(0, true);
    const byteLength = Number(elements) * dtypeBytes[dtype];
    offset += 8;
    if (!(offset + byteLength <= source.size)) throw new FileError(`storage ${key}`, "bytes within the file", `${byteLength}`);
    storages.set(key, { offset, byteLength });
    offset += byteLength;
  }
  return { root: root.value, locate: async storage => requireStorage(storage, storages.get(storage.key)).offset };
}

function storageTypes(root: PickleValue): ReadonlyMap<string, SafetensorsDtype> {
  return new Map([...tensorsOf(root)].map(({ storage }) => [storage.key, storage.dtype]));
}

/** Every tensor within a value, once. A value may hold itself, so what was seen is remembered. */
function* tensorsOf(root: PickleValue): Generator<PickleTensor> {
  const seen = new Set<PickleValue>();
  const open: PickleValue[] = [root];
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    if (typeof value !== "object" || value === null || seen.has(value)) continue;
    seen.add(value);
    if (value instanceof PickleTensor) yield value;
    else if (value instanceof Map || Array.isArray(value)) for (const item of value.values()) open.push(item);
  }
}

function requireStorage<T extends { byteLength: number }>({ key, dtype, elements }: PickleStorage, found: T | undefined): T {
  if (!found) throw new FileError(`storage ${key}`, "an entry of the file", "none");
  const bytes = elements * dtypeBytes[dtype];
  if (found.byteLength !== bytes) throw new FileError(`storage ${key}`, `${bytes} bytes`, String(found.byteLength));
  return found;
}
