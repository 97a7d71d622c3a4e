/**
 * Reads Python pickles as data. Nothing is ever called: a global is a row of `globals` below, which says what its data means, and any
 * other is refused by name, as is every opcode that could reach one in another way. Opcodes: CPython's Lib/pickletools.py.
 */
import { FileError } from "../file-error.ts";
import type { SafetensorsDtype } from "../safetensors-header.ts";

/** A run of elements in a storage of the file. */
export interface PickleStorage {
  dtype: SafetensorsDtype;
  key: string;
  elements: number;
}

export class PickleTensor {
  readonly storage: PickleStorage;
  /** In elements, from the start of the storage. */
  readonly offset: number;
  readonly shape: readonly number[];

  constructor(storage: PickleStorage, offset: number, shape: readonly number[]) {
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
  }
}

/** A name of Python's, not what it names. */
class PickleGlobal {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}

class StorageReference {
  readonly storage: PickleStorage;
  constructor(storage: PickleStorage) {
    this.storage = storage;
  }
}

export type PickleKey = string | number | boolean;
export type PickleDict = Map<PickleKey, PickleValue>;
export type PickleValue = null | boolean | number | bigint | string | Uint8Array | PickleValue[] | PickleDict | PickleTensor | Opaque;
/** Values that only occur on the way to a tensor. */
type Opaque = PickleGlobal | StorageReference;

const storageTypes: Readonly<Record<string, SafetensorsDtype>> = {
  "torch.FloatStorage": "F32",
  "torch.HalfStorage": "F16",
  "torch.BFloat16Storage": "BF16",
  "torch.DoubleStorage": "F64",
  "torch.LongStorage": "I64",
  "torch.IntStorage": "I32",
  "torch.ShortStorage": "I16",
  "torch.CharStorage": "I8",
  "torch.ByteStorage": "U8",
  "torch.BoolStorage": "BOOL",
};

/** What a call of each known global amounts to, as data. */
const globals: Readonly<Record<string, (args: readonly PickleValue[]) => PickleValue>> = {
  "collections.OrderedDict": args => orderedDict(args),
  "torch._utils._rebuild_tensor": args => rebuildTensor(args),
  "torch._utils._rebuild_tensor_v2": args => rebuildTensor(args),
  // (data, requires_grad, hooks)
  "torch._utils._rebuild_parameter": ([data]) => tensorOnly(data),
  "torch.nn.modules.container.ParameterDict": () => new Map(),
  // A ParameterDict's attributes have an empty one.
  "__builtin__.set": ([items = []]) => items,
  "builtins.set": ([items = []]) => items,
  "torch.Size": ([sizes]) => (Array.isArray(sizes) ? sizes : fail("torch.Size", "sizes", typeof sizes)),
};

const maxOperations = 200_000;
const maxTensorRank = 16;

export function fail(key: string, expected: string, got: string): never {
  throw new FileError(key, expected, got);
}

/** The value of one pickle that begins at `start`, and where it ends. Throws FileError. */
export function readPickle(bytes: Uint8Array, start = 0): { value: PickleValue; end: number } {
  const machine = new Machine(bytes, start);
  for (let count = 0; count < maxOperations; count++) {
    const code = machine.byte();
    if (code === stopCode) return { value: machine.result(), end: machine.position };
    const operation = operations[code];
    if (!operation) fail(`pickle byte ${machine.position - 1}`, "an opcode of plain data", `0x${code.toString(16)}`);
    operation(machine);
  }
  return fail("pickle", `at most ${maxOperations} operations`, "more");
}

const stopCode = 0x2e;

/** The stack machine that a pickle programs, with the opcodes of plain data alone. */
class Machine {
  position: number;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #stack: PickleValue[] = [];
  /** Stacks below the open marks. */
  readonly #marks: PickleValue[][] = [];
  readonly #memo = new Map<number, PickleValue>();

  constructor(bytes: Uint8Array, start: number) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.position = start;
  }

  #advance(length: number): number {
    const at = this.position;
    if (length > this.#bytes.length - at) fail(`pickle byte ${at}`, `${length} bytes more`, `${this.#bytes.length - at}`);
    this.position += length;
    return at;
  }

  byte = (): number => this.#bytes[this.#advance(1)]!;
  uint16 = (): number => this.#view.getUint16(this.#advance(2), true);
  uint32 = (): number => this.#view.getUint32(this.#advance(4), true);
  int32 = (): number => this.#view.getInt32(this.#advance(4), true);
  /** Big-endian, unlike everything else. */
  float64 = (): number => this.#view.getFloat64(this.#advance(8), false);

  size64(): number {
    const size = this.#view.getBigUint64(this.#advance(8), true);
    if (size > BigInt(this.#bytes.length)) fail(`pickle byte ${this.position - 8}`, "a length within the file", String(size));
    return Number(size);
  }

  raw(length: number): Uint8Array {
    const at = this.#advance(length);
    return this.#bytes.slice(at, at + length);
  }

  text(length: number): string {
    const at = this.#advance(length);
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.#bytes.subarray(at, at + length));
    } catch {
      return fail(`pickle byte ${at}`, "text in UTF-8", "other bytes");
    }
  }

  line(): string {
    const end = this.#bytes.indexOf(0x0a, this.position);
    if (end < 0 || end - this.position > 1000) fail(`pickle byte ${this.position}`, "a line", "no end of line");
    const text = this.text(end - this.position);
    this.position = end + 1;
    return text;
  }

  /** Two's complement, little-endian. */
  long(length: number): number | bigint {
    if (length > 16) fail(`pickle byte ${this.position}`, "an integer of at most 16 bytes", String(length));
    const value = this.raw(length).reduceRight((sum, byte) => sum * 256n + BigInt(byte), 0n);
    const signed = BigInt.asIntN(length * 8, value);
    return BigInt.asIntN(53, signed) === signed ? Number(signed) : signed;
  }

  push(value: PickleValue): void {
    this.#stack.push(value);
  }

  pop(): PickleValue {
    if (this.#stack.length === 0) fail(`pickle byte ${this.position}`, "a value on the stack", "none");
    return this.#stack.pop()!;
  }

  top(): PickleValue {
    if (this.#stack.length === 0) fail(`pickle byte ${this.position}`, "a value on the stack", "none");
    return this.#stack.at(-1)!;
  }

  mark(): void {
    this.#marks.push(this.#stack);
    this.#stack = [];
  }

  /** What was pushed since the last mark. */
  popMark(): PickleValue[] {
    const below = this.#marks.pop();
    if (!below) fail(`pickle byte ${this.position}`, "an open mark", "none");
    const items = this.#stack;
    this.#stack = below;
    return items;
  }

  popMany(count: number): PickleValue[] {
    const items = Array.from({ length: count }, () => this.pop());
    return items.reverse();
  }

  remember(index: number = this.#memo.size): void {
    this.#memo.set(index, this.top());
  }

  recall(index: number): void {
    if (!this.#memo.has(index)) fail(`pickle byte ${this.position}`, "a remembered value", `nothing under ${index}`);
    this.push(this.#memo.get(index)!);
  }

  result(): PickleValue {
    const value = this.pop();
    if (this.#stack.length > 0 || this.#marks.length > 0) fail(`pickle byte ${this.position}`, "one value at the end", "more");
    return value;
  }

  list(): PickleValue[] {
    const list = this.top();
    return Array.isArray(list) ? list : fail(`pickle byte ${this.position}`, "a list", kindOf(list));
  }

  dict(): PickleDict {
    const dict = this.top();
    return dict instanceof Map ? dict : fail(`pickle byte ${this.position}`, "a dictionary", kindOf(dict));
  }
}

/** Every opcode that a pickle of plain data and tensors has. */
const operations: Readonly<Record<number, (m: Machine) => void>> = {
  128: m => m.byte() > 5 && fail(`pickle byte ${m.position - 1}`, "protocol 2 to 5", "a later one"),
  149: m => void m.size64(), // FRAME
  40: m => m.mark(),
  48: m => void m.pop(), // POP
  49: m => void m.popMark(),
  50: m => m.push(m.top()), // DUP
  78: m => m.push(null),
  136: m => m.push(true),
  137: m => m.push(false),
  74: m => m.push(m.int32()),
  75: m => m.push(m.byte()),
  77: m => m.push(m.uint16()),
  138: m => m.push(m.long(m.byte())),
  139: m => m.push(m.long(m.uint32())),
  71: m => m.push(m.float64()),
  88: m => m.push(m.text(m.uint32())),
  140: m => m.push(m.text(m.byte())),
  141: m => m.push(m.text(m.size64())),
  // Python 2's strings.
  84: m => m.push(m.text(m.uint32())),
  85: m => m.push(m.text(m.byte())),
  66: m => m.push(m.raw(m.uint32())),
  67: m => m.push(m.raw(m.byte())),
  142: m => m.push(m.raw(m.size64())),
  93: m => m.push([]),
  108: m => m.push(m.popMark()), // LIST
  97: m => {
    const item = m.pop();
    m.list().push(item);
  },
  101: m => {
    const items = m.popMark();
    const list = m.list();
    for (const item of items) list.push(item);
  },
  41: m => m.push([]), // EMPTY_TUPLE
  133: m => m.push(m.popMany(1)),
  134: m => m.push(m.popMany(2)),
  135: m => m.push(m.popMany(3)),
  116: m => m.push(m.popMark()), // TUPLE
  125: m => m.push(new Map()),
  100: m => m.push(fill(new Map(), m.popMark())), // DICT
  115: m => {
    const pair = m.popMany(2);
    fill(m.dict(), pair);
  },
  117: m => {
    const items = m.popMark();
    fill(m.dict(), items);
  },
  113: m => m.remember(m.byte()),
  114: m => m.remember(m.uint32()),
  148: m => m.remember(),
  104: m => m.recall(m.byte()),
  106: m => m.recall(m.uint32()),
  99: m => {
    const module = m.line();
    m.push(globalNamed(`${module}.${m.line()}`));
  },
  147: m => {
    const [module, name] = m.popMany(2);
    m.push(globalNamed(`${String(module)}.${String(name)}`));
  },
  82: m => call(m), // REDUCE
  129: m => call(m), // NEWOBJ
  98: m => build(m),
  81: m => m.push(persistentValue(m.pop())), // BINPERSID
};

function globalNamed(name: string): PickleGlobal {
  if (!Object.hasOwn(globals, name) && !Object.hasOwn(storageTypes, name))
    fail(`global ${name}`, "data alone, made of tensors, numbers and texts", "a name that could run code");
  return new PickleGlobal(name);
}

function call(m: Machine): void {
  const [callee, args] = m.popMany(2);
  if (!(callee instanceof PickleGlobal) || !Array.isArray(args) || !Object.hasOwn(globals, callee.name))
    fail(`pickle byte ${m.position}`, "a call of a known constructor", kindOf(callee ?? null));
  m.push(globals[callee.name]!(args));
}

/** The attributes of an object. Of a state dict they are version numbers of modules; of a ParameterDict its tensors are among them. */
function build(m: Machine): void {
  const state = m.pop();
  const target = m.dict();
  if (!(state instanceof Map)) fail(`pickle byte ${m.position}`, "a dictionary of attributes", kindOf(state));
  const parameters = state.get("_parameters");
  if (parameters instanceof Map) for (const [key, value] of parameters) target.set(key, value);
}

function fill(dict: PickleDict, items: readonly PickleValue[]): PickleDict {
  if (items.length % 2 !== 0) fail("dictionary", "keys and values in pairs", `${items.length} items`);
  for (let i = 0; i < items.length; i += 2) {
    const key = items[i]!;
    if (typeof key !== "string" && typeof key !== "number" && typeof key !== "boolean")
      return fail("dictionary", "a text or a number as key", kindOf(key));
    dict.set(key, items[i + 1]!);
  }
  return dict;
}

function orderedDict([pairs]: readonly PickleValue[]): PickleDict {
  if (pairs === undefined) return new Map();
  if (!Array.isArray(pairs)) return fail("collections.OrderedDict", "pairs", kindOf(pairs));
  const items: PickleValue[] = [];
  for (const pair of pairs) {
    if (!Array.isArray(pair) || pair.length !== 2) return fail("collections.OrderedDict", "pairs", kindOf(pair));
    items.push(pair[0]!, pair[1]!);
  }
  return fill(new Map(), items);
}

/** What stands for an id: files from before torch 1.6 name a module's class so, beside its source text, which nothing reads. */
function persistentValue(id: PickleValue): PickleValue {
  if (Array.isArray(id) && id[0] === "module" && id[1] instanceof PickleGlobal) return id[1];
  return storageReference(id);
}

/** ("storage", type, key, location, elements), and in the oldest files a view, which is always None. */
function storageReference(id: PickleValue): StorageReference {
  if (!Array.isArray(id)) return fail("storage", "a tuple", kindOf(id));
  const [tag, type, key, , elements, view] = id;
  const dtype = type instanceof PickleGlobal && Object.hasOwn(storageTypes, type.name) ? storageTypes[type.name] : undefined;
  if (tag !== "storage" || !dtype || typeof key !== "string" || !isSize(elements)) return fail("storage", "type, key and size", "others");
  if (view !== undefined && view !== null) return fail(`storage ${key}`, "a storage of its own", "a view");
  return new StorageReference({ dtype, key, elements });
}

/** (storage, offset, size, stride, …): the elements have to lie row by row. */
function rebuildTensor([reference, offset, size, stride]: readonly PickleValue[]): PickleTensor {
  if (!(reference instanceof StorageReference) || !isSize(offset) || !isSizes(size) || !isSizes(stride) || size.length !== stride.length)
    return fail("tensor", "a storage, an offset, sizes and strides", "others");
  const { storage } = reference;
  let step = 1;
  for (let i = size.length - 1; i >= 0; i--) {
    if (size[i] !== 1 && stride[i] !== step)
      fail(`tensor in storage ${storage.key}`, `stride ${step} in dimension ${i}`, String(stride[i]));
    step *= size[i]!;
  }
  if (!(offset + step <= storage.elements))
    fail(`tensor in storage ${storage.key}`, `at most ${storage.elements} elements`, `${step} from ${offset} on`);
  return new PickleTensor(storage, offset, size);
}

function tensorOnly(value: PickleValue | undefined): PickleTensor {
  return value instanceof PickleTensor ? value : fail("parameter", "a tensor", kindOf(value ?? null));
}

function isSize(value: PickleValue | undefined): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function isSizes(value: PickleValue | undefined): value is number[] {
  return Array.isArray(value) && value.length <= maxTensorRank && value.every(isSize);
}

const maxValues = 200_000;

/** Every tensor by the keys and positions that lead to it. Values may be shared or hold themselves, so the walk is bounded. */
export function* flatTensors(root: PickleDict): Generator<[string, PickleTensor]> {
  const open: [string, PickleValue][] = [["", root]];
  let seen = 0;
  // The list grows while it is walked; taking from its front would move all of it each time.
  for (const [name, value] of open) {
    if (value instanceof PickleTensor) yield [name, value];
    if (!(value instanceof Map) && !Array.isArray(value)) continue;
    for (const [key, item] of value.entries()) {
      if (++seen > maxValues || name.length > 1000) throw new FileError("pickle", "a dictionary of tensors", "values without end");
      open.push([name === "" ? String(key) : `${name}.${String(key)}`, item]);
    }
  }
}

/** What a value is, for messages. */
export function kindOf(value: PickleValue): string {
  if (value === null) return "None";
  if (Array.isArray(value)) return "a list";
  if (value instanceof Map) return "a dictionary";
  if (value instanceof PickleTensor) return `a tensor [${value.shape}]`;
  if (value instanceof PickleGlobal) return value.name;
  return value instanceof StorageReference ? "a storage" : typeof value;
}
