import { openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  dtypeBytes,
  type SafetensorsDtype,
  SafetensorsError,
  SafetensorsFile,
  withSafetensors,
} from "../../../gpu-runner/weights/safetensors.ts";
import { bytesOf, type TensorToWrite, writeSafetensors } from "../../../gpu-runner/weights/safetensors-write.ts";
import { temporaryFolder } from "../support/temporary.ts";
import { float32Tensor, floatToHalf } from "../support/tensors.ts";

/** A file of a header as given and that many zero bytes of data. */
function writeRaw(file: string, header: string | object, dataBytes: number): void {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const out = new Uint8Array(8 + json.length + dataBytes);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  writeFileSync(file, out);
}

function errorOf(file: string): SafetensorsError {
  try {
    SafetensorsFile.open(file).close();
  } catch (error) {
    if (error instanceof SafetensorsError) return error;
    throw error;
  }
  throw new Error(`${file} was accepted`);
}

const f32 = (begin: number, end: number, shape = [(end - begin) / 4]) => ({ dtype: "F32", shape, data_offsets: [begin, end] });

const malformed: Record<string, { header: string | object; data: number; key: string; expected: string; got: string }> = {
  gap: { header: { a: f32(0, 4), b: f32(8, 12) }, data: 12, key: "b", expected: "data from byte 4 on (no gap or overlap)", got: "8" },
  overlap: { header: { a: f32(0, 8), b: f32(4, 12) }, data: 12, key: "b", expected: "data from byte 8 on (no gap or overlap)", got: "4" },
  "a start after the first byte": {
    header: { a: f32(4, 8) },
    data: 8,
    key: "a",
    expected: "data from byte 0 on (no gap or overlap)",
    got: "4",
  },
  "a duplicate tensor": {
    header: `{"a":${JSON.stringify(f32(0, 4))},"\\u0061":${JSON.stringify(f32(0, 4))}}`,
    data: 4,
    key: "a",
    expected: "a key that stands once",
    got: "a duplicate",
  },
  "a duplicate field": {
    header: '{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}',
    data: 4,
    key: "shape",
    expected: "a key that stands once",
    got: "a duplicate",
  },
  "a short file": { header: { a: f32(0, 8) }, data: 7, key: "file", expected: "70 bytes as its header says", got: "69 bytes" },
  "a long file": { header: { a: f32(0, 8) }, data: 9, key: "file", expected: "70 bytes as its header says", got: "71 bytes" },
  "a size that its shape denies": {
    header: { a: f32(0, 8, [3]) },
    data: 8,
    key: "a",
    expected: "12 bytes for F32 [3]",
    got: "data_offsets 0..8",
  },
  "an overflowing shape": {
    header: { a: f32(0, 0, [2 ** 31, 2 ** 31, 2 ** 31]) },
    data: 0,
    key: "a",
    expected: "a size below 2^53 bytes",
    got: "shape [2147483648,2147483648,2147483648]",
  },
  "an overflow hidden by a zero": {
    header: { a: f32(0, 0, [2 ** 40, 2 ** 40, 0]) },
    data: 0,
    key: "a",
    expected: "a size below 2^53 bytes",
    got: "shape [1099511627776,1099511627776,0]",
  },
  "offsets that run backwards": {
    header: { a: f32(4, 0, [1]) },
    data: 4,
    key: "a",
    expected: "4 bytes for F32 [1]",
    got: "data_offsets 4..0",
  },
};

describe("a malformed file is refused with key, expected and got", () => {
  test.each(Object.entries(malformed))("%s", (_, { header, data, key, expected, got }) => {
    const file = join(temporaryFolder(), "bad.safetensors");
    writeRaw(file, header, data);
    expect(errorOf(file)).toMatchObject({ file, key, expected, got });
  });

  test.each([
    ["a negative dim", { a: f32(0, 4, [-1]) }],
    ["a fractional dim", { a: f32(0, 4, [1.5]) }],
    ["an unknown dtype", { a: { ...f32(0, 4), dtype: "F4" } }],
    ["an unknown field", { a: { ...f32(0, 4), more: 1 } }],
    ["a missing field", { a: { dtype: "F32", shape: [1] } }],
    ["an entry that is a list", { a: [] }],
  ])("%s", (_, header) => {
    const file = join(temporaryFolder(), "bad.safetensors");
    writeRaw(file, header, 4);
    expect(errorOf(file)).toMatchObject({ key: "a", expected: "dtype, shape and data_offsets" });
  });

  test.each([
    ["not an object", "[]", 'JSON that begins with "{"'],
    ["not JSON", '{"a"', "JSON in UTF-8"],
  ])("a header that is %s", (_, header, expected) => {
    const file = join(temporaryFolder(), "bad.safetensors");
    writeRaw(file, header, 0);
    expect(errorOf(file)).toMatchObject({ key: "header", expected });
  });

  test("metadata that are not strings", () => {
    const file = join(temporaryFolder(), "bad.safetensors");
    writeRaw(file, { __metadata__: { a: 1 } }, 0);
    expect(errorOf(file)).toMatchObject({ key: "__metadata__", expected: "an object of strings", got: '{"a":1}' });
  });

  test("a header that is longer than the file, or than any header may be", () => {
    const file = join(temporaryFolder(), "bad.safetensors");
    writeRaw(file, {}, 0);
    const descriptor = openSync(file, "r+");
    writeSync(descriptor, new Uint8Array([255, 255, 255, 255, 255, 255, 255, 255]), 0, 8, 0);
    expect(errorOf(file)).toMatchObject({ key: "header length", expected: "2 to 2", got: "18446744073709551615" });
    writeFileSync(file, new Uint8Array(3));
    expect(errorOf(file)).toMatchObject({ key: "file", expected: "at least 10 bytes", got: "3 bytes" });
  });
});

const tensorArbitrary = fc.record({
  dtype: fc.constantFrom(...(Object.keys(dtypeBytes) as SafetensorsDtype[])),
  shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 }),
});
const fileArbitrary = fc.dictionary(
  fc.string({ minLength: 1, maxLength: 8, unit: "grapheme" }).filter(name => name !== "__metadata__" && name !== "__proto__"),
  tensorArbitrary,
  { maxKeys: 6 },
);

function toWrite(tensors: Record<string, { dtype: SafetensorsDtype; shape: number[] }>): {
  tensors: TensorToWrite[];
  bytes: Map<string, Uint8Array>;
} {
  const bytes = new Map(
    Object.entries(tensors).map(([name, { dtype, shape }], i) => {
      const length = shape.reduce((a, b) => a * b, dtypeBytes[dtype]);
      return [name, Uint8Array.from({ length }, (_, j) => (i * 31 + j * 7) & 255)] as const;
    }),
  );
  return { tensors: Object.entries(tensors).map(([name, tensor]) => ({ name, ...tensor, data: () => [bytes.get(name)!] })), bytes };
}

describe("properties", () => {
  test("what is written is read back: names, dtypes, shapes, bytes", () => {
    const folder = temporaryFolder();
    fc.assert(
      fc.property(fileArbitrary, fc.constantFrom(8, 64, 4096), (spec, align) => {
        const file = join(folder, "round.safetensors");
        const { tensors, bytes } = toWrite(spec);
        writeSafetensors(file, tensors, { align, metadata: { format: "pt" } });
        withSafetensors(file, read => {
          expect(read.metadata).toEqual({ format: "pt" });
          expect([...read.entries.keys()].sort()).toEqual(Object.keys(spec).sort());
          for (const [name, { dtype, shape }] of Object.entries(spec)) {
            expect(read.entry(name)).toMatchObject({ dtype, shape });
            expect(read.readBytes(name)).toEqual(bytes.get(name));
          }
          for (const entry of read.entries.values()) if (entry === [...read.entries.values()][0]) expect(entry.offset % align).toBe(0);
        });
      }),
      { numRuns: 60 },
    );
  });

  test("a file with bytes changed, cut or added loads with tensors inside the file, or throws SafetensorsError", () => {
    const folder = temporaryFolder();
    const file = join(folder, "mutated.safetensors");
    const mutation = fc.record({ at: fc.double({ min: 0, max: 1, noNaN: true }), byte: fc.integer({ min: 0, max: 255 }) });
    fc.assert(
      fc.property(fileArbitrary, fc.array(mutation, { maxLength: 3 }), fc.integer({ min: -12, max: 12 }), (spec, mutations, growth) => {
        writeSafetensors(file, toWrite(spec).tensors);
        const original = readFileSync(file);
        const bytes = new Uint8Array(Math.max(0, original.length + growth));
        bytes.set(original.subarray(0, bytes.length));
        // Headers are where a change matters: most of a tiny file is header.
        for (const { at, byte } of mutations) bytes[Math.floor(at * (bytes.length - 1))] = byte;
        writeFileSync(file, bytes);
        try {
          withSafetensors(file, read => {
            const total = [...read.entries.values()].reduce(
              (sum, { name, byteLength }) => sum + read.readBytes(name).length + 0 * byteLength,
              0,
            );
            const start = Math.min(bytes.length, ...[...read.entries.values()].map(entry => entry.offset));
            expect(total).toBe(bytes.length - start);
          });
        } catch (error) {
          expect(error).toBeInstanceOf(SafetensorsError);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe("widening", () => {
  test("each floating dtype gives the fp32 values, whole and in part", () => {
    const file = join(temporaryFolder(), "floats.safetensors");
    const values = [0, -0, 1, -1.5, 65504, 2 ** -24, 2 ** -14, 0.333251953125, Number.POSITIVE_INFINITY];
    const half = Uint16Array.from(values, floatToHalf);
    const brain = Uint16Array.from(values, value => new Uint32Array(Float32Array.of(value).buffer)[0]! >>> 16);
    writeSafetensors(file, [
      float32Tensor("F32", [9], Float32Array.from(values)),
      { name: "F64", dtype: "F64", shape: [9], data: () => [bytesOf(Float64Array.from(values))] },
      { name: "F16", dtype: "F16", shape: [9], data: () => [bytesOf(half)] },
      { name: "BF16", dtype: "BF16", shape: [9], data: () => [bytesOf(brain)] },
      { name: "I32", dtype: "I32", shape: [1], data: () => [bytesOf(Int32Array.of(5))] },
    ]);
    withSafetensors(file, read => {
      for (const dtype of ["F32", "F64", "F16"]) expect([...read.readFloat32(dtype)]).toEqual(values);
      expect([...read.readFloat32("BF16")].slice(0, 4)).toEqual([0, -0, 1, -1.5]);
      expect(read.readFloat32("BF16")[4]).toBe(65280);
      expect([...read.readFloat32("F16", 2, 3)]).toEqual([1, -1.5, 65504]);
      expect(() => read.readFloat32("I32")).toThrow("I32: expected F32 or F64 or F16 or BF16, got I32");
      expect(() => read.readFloat32("F32", 8, 2)).toThrow("F32: expected a range within 36 bytes, got 32..40");
      expect(() => read.readFloat32("none")).toThrow("none: expected a tensor of this name, got none");
    });
  });

  test("rounding to half goes to nearest even and survives the way back, for every half", () => {
    const file = join(temporaryFolder(), "halves.safetensors");
    const all = Uint16Array.from({ length: 65536 }, (_, i) => i).filter(bits => (bits & 0x7c00) !== 0x7c00);
    writeSafetensors(file, [{ name: "h", dtype: "F16", shape: [all.length], data: () => [bytesOf(all)] }]);
    const widened = withSafetensors(file, read => read.readFloat32("h"));
    expect(Uint16Array.from(widened, floatToHalf)).toEqual(all);
    expect([1 + 2 ** -11, 1 + 3 * 2 ** -11, 65519, 65520, 2 ** -25].map(floatToHalf)).toEqual([0x3c00, 0x3c02, 0x7bff, 0x7c00, 0]);
    expect(floatToHalf(Number.NaN)).toBe(0x7e00);
  });
});

test("the writer refuses data that do not fill a tensor's shape", () => {
  const file = join(temporaryFolder(), "short.safetensors");
  expect(() => writeSafetensors(file, [float32Tensor("a", [3], new Float32Array(2))])).toThrow("a: expected 12 bytes, got 8 bytes");
});
