/** Ways to spoil a file: blindly, and with knowledge of its format, so that the damage reaches deep into the readers. */
import type { Random } from "./random.ts";

type Mutation = (bytes: Buffer, random: Random) => Buffer;

/** One to three mutations of a file. */
export function mutate(path: string, bytes: Buffer, random: Random): Buffer {
  const structured = path.endsWith(".json") ? jsonMutations : isZip(bytes) ? zipMutations : headerMutations;
  let out: Buffer = Buffer.from(bytes);
  for (let count = 1 + random.below(3); count > 0; count--)
    out = random.pick(random.below(4) > 0 ? structured : blindMutations)(out, random);
  return out;
}

function isZip(bytes: Buffer): boolean {
  return bytes.readUInt16LE(0) === 0x4b50;
}

/** A place that matters more often than not: the first kilobyte, else anywhere. */
function place(bytes: Buffer, random: Random): number {
  return random.below(random.below(2) ? Math.min(bytes.length, 1024) : bytes.length);
}

const blindMutations: readonly Mutation[] = [
  (bytes, random) => {
    for (let count = 1 + random.below(8); count > 0 && bytes.length > 0; count--) bytes[place(bytes, random)] = random.below(256);
    return bytes;
  },
  (bytes, random) => bytes.subarray(0, random.below(bytes.length + 1)),
  (bytes, random) => Buffer.concat([bytes, Buffer.alloc(1 + random.below(5000), random.below(256))]),
  (bytes, random) => {
    const at = place(bytes, random);
    return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random.below(64))]);
  },
  (bytes, random) => {
    const at = place(bytes, random);
    return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at, at + 64), bytes.subarray(at)]);
  },
  (bytes, random) => {
    const at = place(bytes, random);
    if (at + 8 <= bytes.length)
      bytes.writeBigUInt64LE(random.pick([0n, 1n, 2n ** 31n, 2n ** 32n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]), at);
    return bytes;
  },
];

const oddNumbers = [0, 1, -1, 0.5, 3, 2 ** 31, 2 ** 32 - 1, 2 ** 53, 1e308, Number.NaN];
const oddValues: readonly unknown[] = [null, true, "", "F32", "a".repeat(100_000), [], {}, [[[[[]]]]], ...oddNumbers];
const dtypes = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "", "f32"];
const oddNames = [
  "",
  "__proto__",
  "constructor",
  "toString",
  "__metadata__",
  "a".repeat(70_000),
  "lora_unet_",
  ".alpha",
  "..",
  "\u0000",
  "lora_te_x.alpha",
  "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",
  "bundle_emb.x.clip_l",
  "768.k.linear.0.weight",
  "emb_params",
  "a1.weight",
  "clip_g",
];

/** Rewrites the JSON header of a safetensors file and keeps the rest. */
function onHeader(change: (header: Record<string, unknown>, random: Random) => void): Mutation {
  return (bytes, random) => {
    const length = bytes.length >= 8 ? Number(bytes.readBigUInt64LE(0)) : 0;
    const header = length <= bytes.length ? parse(bytes.subarray(8, 8 + length).toString()) : null;
    if (header === null) return bytes;
    change(header, random);
    return withHeader(JSON.stringify(header), bytes.subarray(8 + length));
  };
}

function withHeader(json: string, rest: Buffer): Buffer {
  const text = Buffer.from(json);
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([prefix, text, rest]);
}

function parse(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}

function someEntry(header: Record<string, unknown>, random: Random): { name: string; entry: Record<string, unknown> } {
  const name = random.pick(Object.keys(header).concat(Object.keys(header).length === 0 ? ["x"] : []));
  const entry = header[name];
  return { name, entry: typeof entry === "object" && entry !== null ? (entry as Record<string, unknown>) : {} };
}

function dims(entry: Record<string, unknown>): unknown[] {
  return Array.isArray(entry.shape) ? entry.shape : [];
}

const headerMutations: readonly Mutation[] = [
  onHeader((header, random) => {
    someEntry(header, random).entry.dtype = random.pick(dtypes);
  }),
  onHeader((header, random) => {
    const shape = dims(someEntry(header, random).entry);
    shape[random.below(shape.length + 1)] = random.pick(oddNumbers);
  }),
  // Sizes that still add up: the shape is another, the bytes are the same.
  onHeader((header, random) => {
    const { entry } = someEntry(header, random);
    entry.shape = random.pick([dims(entry).toReversed(), [...dims(entry), 1], [1, ...dims(entry)], dims(entry).slice().sort()]);
  }),
  onHeader((header, random) => {
    const { entry } = someEntry(header, random);
    entry.shape = [dims(entry).reduce<number>((product, dim) => product * Number(dim), 1)];
  }),
  onHeader((header, random) => {
    const { entry } = someEntry(header, random);
    const offsets = Array.isArray(entry.data_offsets) ? (entry.data_offsets as unknown[]) : [];
    offsets[random.below(2)] = random.pick([...oddNumbers, Number(offsets[0]) + 1, Number(offsets[1]) - 2]);
  }),
  onHeader((header, random) => {
    const [a, b] = [someEntry(header, random).entry, someEntry(header, random).entry];
    [a.data_offsets, b.data_offsets] = [b.data_offsets, a.data_offsets];
  }),
  onHeader((header, random) => {
    const { name } = someEntry(header, random);
    const entry = header[name];
    delete header[name];
    const half = Math.floor(name.length / 2);
    header[random.pick([...oddNames, `${name}x`, name.slice(0, half), name.slice(half), name.replace(/\d/, "99")])] = entry;
  }),
  onHeader((header, random) => {
    delete header[someEntry(header, random).name];
  }),
  onHeader((header, random) => {
    const { name } = someEntry(header, random);
    header[random.pick(["__metadata__", name])] = random.pick(oddValues);
  }),
  onHeader((header, random) => {
    const metadata: Record<string, unknown> = {
      lora_adapter_metadata: JSON.stringify({ "unet.r": random.pick(oddValues), "unet.lora_alpha": 4 }),
    };
    header.__metadata__ = metadata;
  }),
  // A name that stands twice, which a JSON object cannot say.
  (bytes, random) => {
    const length = bytes.length >= 8 ? Number(bytes.readBigUInt64LE(0)) : 0;
    if (length < 2 || length > bytes.length) return bytes;
    const json = bytes
      .subarray(8, 8 + length)
      .toString()
      .trimEnd();
    const first = /"(?:[^"\\]|\\.)*":\{[^{}]*\}/.exec(json)?.[0];
    return first && json.endsWith("}")
      ? withHeader(`${json.slice(0, -1)},${first}}`, bytes.subarray(8 + length))
      : blindMutations[0]!(bytes, random);
  },
  (bytes, random) => withHeader("[".repeat(1 + random.below(200_000)), bytes.subarray(8)),
  (bytes, random) => withHeader(`{"a":${'{"a":'.repeat(random.below(20_000))}`, bytes.subarray(8)),
];

const oddOpcodes: readonly number[] = Buffer.from(
  "cRiobQVPq\x80\x81\x82\x83\x84\x8f\x90\x91\x92\x93\x94\x95\x96u(t}]0123ede.NKMJX",
  "latin1",
).toJSON().data;
const oddGlobals = ["os\nsystem\n", "builtins\neval\n", "torch\nload\n", "numpy\nndarray\n", "copyreg\n_reconstructor\n"];

const zipMutations: readonly Mutation[] = [
  // Within the pickle, which torch writes first.
  (bytes, random) => {
    for (let count = 1 + random.below(6); count > 0; count--) {
      const at = 64 + random.below(Math.max(1, Math.min(bytes.length - 64, 6000)));
      if (at < bytes.length) bytes[at] = random.pick(oddOpcodes);
    }
    return bytes;
  },
  (bytes, random) => {
    const at = bytes.indexOf(random.pick(["torch._utils", "collections\nOrderedDict", "torch\nHalfStorage", "torch\nFloatStorage"]));
    if (at >= 0) bytes.write(random.pick(oddGlobals), at, "latin1");
    return bytes;
  },
  // Within the directory, at the end.
  (bytes, random) => {
    for (let count = 1 + random.below(4); count > 0 && bytes.length > 0; count--)
      bytes[Math.max(0, bytes.length - 1 - random.below(3000))] = random.pick([0, 1, 8, 255, random.below(256)]);
    return bytes;
  },
  (bytes, random) => {
    const at = bytes.lastIndexOf("PK\x01\x02", random.below(bytes.length), "latin1");
    if (at >= 0 && at + 46 <= bytes.length)
      bytes.writeUInt32LE(random.pick([0, 1, 46, 2 ** 31, 2 ** 32 - 1, random.below(bytes.length)]), at + random.pick([20, 24, 28, 42]));
    return bytes;
  },
  (bytes, random) => {
    const at = bytes.lastIndexOf("PK\x05\x06", bytes.length, "latin1");
    if (at >= 0 && at + 22 <= bytes.length)
      bytes.writeUInt16LE(random.pick([0, 1, 2, 60_000, 65_535]), at + random.pick([4, 8, 10, 12, 16, 20]));
    return bytes;
  },
];

/** Changes one value somewhere in a JSON document. */
function onJson(change: (parent: Record<string, unknown> | unknown[], key: string, random: Random) => void): Mutation {
  return (bytes, random) => {
    let value: unknown;
    try {
      value = JSON.parse(bytes.toString());
    } catch {
      return bytes;
    }
    let parent = value;
    for (let depth = random.below(4); typeof parent === "object" && parent !== null; depth--) {
      const keys = Object.keys(parent);
      const key = keys.length > 0 ? random.pick(keys) : "x";
      const child: unknown = (parent as Record<string, unknown>)[key];
      if (depth <= 0 || typeof child !== "object" || child === null) {
        change(parent as Record<string, unknown>, key, random);
        break;
      }
      parent = child;
    }
    return Buffer.from(JSON.stringify(value) ?? "");
  };
}

const jsonMutations: readonly Mutation[] = [
  onJson((parent, key, random) => {
    (parent as Record<string, unknown>)[key] = random.pick([...oddValues, "((a+)+)+$", { "((a+)+)+$": 4 }, [1, 2, 1], "sigmoid"]);
  }),
  onJson((parent, key) => {
    delete (parent as Record<string, unknown>)[key];
  }),
  (bytes, random) =>
    Buffer.concat([bytes.subarray(0, random.below(bytes.length + 1)), Buffer.from(random.pick(["", "}", "null", "[", "NaN"]))]),
  (_, random) => Buffer.from("[".repeat(random.below(100_000))),
];
