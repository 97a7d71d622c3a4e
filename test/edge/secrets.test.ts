import { describe, expect, it } from "vitest";
import { checksumBase62, equalSecrets, hmac, newPepperedHash, pepperedHash, randomBase62 } from "../../edge/secrets.ts";
import { toHex } from "../../shared/canonical.ts";

describe("checksumBase62", () => {
  it("is CRC-32, whose check value is 0xcbf43926", () => {
    const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const value = [...checksumBase62("123456789")].reduce((sum, digit) => sum * 62 + digits.indexOf(digit), 0);
    expect(value).toBe(0xcbf43926);
    expect(checksumBase62("")).toBe("000000");
  });
});

describe("randomBase62", () => {
  it("draws each digit about equally often", () => {
    const counts = new Map<string, number>();
    const drawn = 62_000;
    for (const digit of randomBase62(drawn)) counts.set(digit, (counts.get(digit) ?? 0) + 1);
    expect(counts.size).toBe(62);
    // Chi-square with 61 degrees of freedom: above 120 about once in 100,000 runs.
    const chi = [...counts.values()].reduce((sum, n) => sum + (n - drawn / 62) ** 2 / (drawn / 62), 0);
    expect(chi).toBeLessThan(120);
  });

  it("has the length that is asked for, and is another each time", () => {
    expect(randomBase62(30)).toMatch(/^[0-9A-Za-z]{30}$/);
    expect(randomBase62(30)).not.toBe(randomBase62(30));
  });
});

it("hmac is RFC 4231's test case 2", async () => {
  expect(toHex(await hmac("Jefe", "what do ya want for nothing?"))).toBe(
    "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
  );
});

it("hashes are made under the newest pepper, and each is found under its own", async () => {
  const peppers = { old: "a".repeat(22), new: "b".repeat(22) };
  const { hash, pepper_id } = await newPepperedHash(peppers, "secret");
  expect(pepper_id).toBe("new");
  expect(await pepperedHash(peppers, "new", "secret")).toBe(hash);
  expect(await pepperedHash(peppers, "old", "secret")).not.toBe(hash);
  expect(await pepperedHash(peppers, "lost", "secret")).toBeUndefined();
});

it("secrets are equal, or not", async () => {
  expect(await Promise.all([equalSecrets("a", "a"), equalSecrets("a", "b"), equalSecrets("", ""), equalSecrets("a", "aa")])).toEqual([
    true,
    false,
    true,
    false,
  ]);
});
