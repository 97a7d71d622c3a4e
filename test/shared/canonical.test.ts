import { createHash } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { canonicalize, type Json, sha256Hex, toHex } from "../../shared/canonical.ts";

/** Values without lone surrogates and infinities, objects of any depth with any keys. */
const json = fc.jsonValue({ maxDepth: 4, stringUnit: "grapheme" }) as fc.Arbitrary<Json>;

/** The same value with every object's keys in another order. */
function shuffled(value: Json, random: (n: number) => number): Json {
  if (Array.isArray(value)) return value.map(item => shuffled(item, random));
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).map(([key, member]) => [random(1000), key, shuffled(member, random)] as const);
  return Object.fromEntries(entries.sort(([a], [b]) => a - b).map(([, key, member]) => [key, member]));
}

describe("canonicalize", () => {
  it("gives RFC 8785's own example", () => {
    const value = {
      numbers: [Number("333333333.33333329"), 1e30, 4.5, 2e-3, 0.000000000000000000000000001],
      string: "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"/",
      literals: [null, true, false],
    };
    expect(canonicalize(value)).toBe(
      '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
    );
  });

  it("sorts keys by UTF-16 code units, as RFC 8785, 3.2.3 has it", () => {
    const keys = ["\u20ac", "\r", "\ufb33", "1", "\ud83d\ude00", "\u0080", "\u00f6"];
    const text = canonicalize(Object.fromEntries(keys.map(key => [key, 0])));
    expect(Object.keys(JSON.parse(text) as object)).toEqual(["1", "\r", "\u0080", "\u00f6", "\u20ac", "\ud83d\ude00", "\ufb33"]);
  });

  it("keeps the value", () => {
    fc.assert(
      fc.property(json, value => {
        expect(JSON.parse(canonicalize(value))).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
  });

  it("is the same text whatever the order of keys, and canonical text stays as it is", () => {
    fc.assert(
      fc.property(json, fc.infiniteStream(fc.nat(999)), (value, stream) => {
        const text = canonicalize(value);
        expect(canonicalize(shuffled(value, () => stream.next().value))).toBe(text);
        expect(canonicalize(JSON.parse(text) as Json)).toBe(text);
      }),
    );
  });

  it("gives the same text for equal values and no others", () => {
    const plain = (value: Json): unknown => JSON.parse(JSON.stringify(value));
    fc.assert(
      fc.property(json, json, (a, b) => {
        expect(canonicalize(a) === canonicalize(b)).toBe(isDeepStrictEqual(plain(a), plain(b)));
      }),
    );
  });

  it("writes -0 as 0", () => {
    expect(canonicalize([-0, 0])).toBe("[0,0]");
  });

  it.each([
    ["NaN", Number.NaN],
    ["Infinity", Number.POSITIVE_INFINITY],
    ["a lone surrogate", "\ud800"],
    ["a lone surrogate as key", { "\udc00": 1 }],
    ["undefined", { a: undefined as unknown as Json }],
  ])("refuses %s", (_, value) => {
    expect(() => canonicalize(value)).toThrow(RangeError);
  });
});

describe("sha256Hex", () => {
  it("is SHA-256 of the UTF-8 form", async () => {
    expect(await sha256Hex("")).toBe("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    await fc.assert(
      fc.asyncProperty(fc.string({ unit: "grapheme" }), async text => {
        expect(await sha256Hex(text)).toBe(createHash("sha256").update(text).digest("hex"));
      }),
    );
    await fc.assert(
      fc.asyncProperty(fc.uint8Array(), async bytes => {
        expect(await sha256Hex(new Uint8Array(bytes))).toBe(createHash("sha256").update(bytes).digest("hex"));
      }),
    );
  });

  it("hexadecimal digits keep leading zeros", () => {
    expect(toHex(new Uint8Array([0, 1, 15, 16, 255]))).toBe("00010f10ff");
  });
});
