import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withTensorFile } from "../../../gpu-runner/adapters/tensor-file.ts";
import { bytesSource } from "../../../shared/adapters/byte-source.ts";
import { readPickle } from "../../../shared/adapters/pickle.ts";
import { readTorchFile } from "../../../shared/adapters/torch-file.ts";

const pickles = join(import.meta.dirname, "../../goldens/adapter-layouts/adapters/pickles");
const pickle = (text: string) => readPickle(Buffer.from(text, "latin1")).value;

describe("torch.save files as data", () => {
  it.each(["before-zip.pt", "before-zip-parameter-dict.pt", "parameter-dict.pt"])("%s", async name => {
    await withTensorFile(join(pickles, name), file => {
      expect([...file.tensors]).toMatchObject([["string_to_param.*", { dtype: "F32", shape: [2, 24] }]]);
      expect(file.pickled?.get("name")).toBe("legacy");
      expect(Array.from(file.read("string_to_param.*"))).toEqual(Array.from({ length: 48 }, (_, i) => i / 8));
    });
  });

  it("refuses entries that are compressed or overlap", async () => {
    const bytes = readFileSync(join(pickles, "learned_embeds.bin"));
    const directory = bytes.indexOf("PK\x01\x02", 0, "latin1");
    const deflated = Buffer.from(bytes);
    deflated.writeUInt16LE(8, directory + 10);
    await expect(readTorchFile(bytesSource(deflated))).rejects.toThrow(
      "expected an entry that is stored as it is, got compression method 8",
    );
    const overlapping = Buffer.from(bytes);
    for (const field of [20, 24]) overlapping.writeUInt32LE(bytes.length, directory + field);
    await expect(readTorchFile(bytesSource(overlapping))).rejects.toThrow("expected an entry that overlaps no other");
  });
});

describe("pickles", () => {
  it("reads plain data", () => {
    expect(pickle("\x80\x02}q\x00(X\x01\x00\x00\x00aK\x07X\x01\x00\x00\x00b]q\x01(\x88Ne\x75.")).toEqual(
      new Map<string, unknown>([
        ["a", 7],
        ["b", [true, null]],
      ]),
    );
    expect(pickle("\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")).toBe(0x1950a86a20f9469cfc6cn);
  });

  it.each([
    ["builtins\neval", "global builtins.eval"],
    ["os\nsystem", "global os.system"],
    ["torch\nload", "global torch.load"],
    ["collections\n__class__", "global collections.__class__"],
    ["constructor\nprototype", "global constructor.prototype"],
  ])("refuses the global %j before anything is made of it", (name, message) => {
    expect(() => pickle(`\x80\x02c${name}\n.`)).toThrow(message);
    expect(() =>
      pickle(
        `\x80\x04\x8c${String.fromCharCode(name.indexOf("\n"))}${name.replace("\n", `\x8c${String.fromCharCode(name.length - name.indexOf("\n") - 1)}`)}\x93.`,
      ),
    ).toThrow(message);
  });

  it.each([
    ["an instance opcode", "\x80\x02(ios\nsystem\n."],
    ["an extension", "\x80\x02\x82\x01."],
    ["an unmarked tuple", "\x80\x02t."],
    ["an unknown memo", "\x80\x02h\x05."],
    ["a text longer than the file", "\x80\x02X\xff\xff\xff\x7fa."],
    ["no end", "\x80\x02N"],
    ["more operations than any adapter needs", `\x80\x02${"N0".repeat(150_000)}N.`],
  ])("refuses %s", (_, text) => {
    expect(() => pickle(text)).toThrow(/expected .*, got /);
  });
});
