import { env } from "cloudflare:workers";
import { describe, expect, it } from "vitest";
import { objectSource } from "../../edge/adapter-inspection.ts";

const BYTES = 2 * 1024 * 1024 + 100;
const content = Uint8Array.from({ length: BYTES }, (_, i) => (i * 31) % 251);

/** A bucket that says which ranges were asked for. */
async function bucketWith(key: string) {
  await env.BUCKET.put(key, content);
  const ranges: { offset: number; length: number }[] = [];
  const get = (name: string, options: { range: { offset: number; length: number } }) => {
    ranges.push(options.range);
    return env.BUCKET.get(name, options);
  };
  return { bucket: { get } as unknown as R2Bucket, ranges };
}
const plenty = () => ({ bytes: 10 * BYTES, reads: 100 });

describe("a file in the bucket, read by parts", () => {
  it("gives exactly the bytes that are asked for, across blocks and at the end", async () => {
    const { bucket } = await bucketWith("adapters/parts");
    const source = objectSource(bucket, "adapters/parts", BYTES, plenty());
    for (const [offset, length] of [
      [0, 8],
      [524_280, 20],
      [BYTES - 5, 5],
      [0, 0],
      [100, 1_500_000],
    ] as const)
      expect(Buffer.compare(await source.read(offset, length), content.subarray(offset, offset + length))).toBe(0);
  });

  it("asks once for what lies together", async () => {
    const { bucket, ranges } = await bucketWith("adapters/together");
    const source = objectSource(bucket, "adapters/together", BYTES, plenty());
    for (let i = 0; i < 500; i++) await source.read(i * 1000, 30);
    expect(ranges).toEqual([{ offset: 0, length: 524_288 }]);
  });

  it("refuses to read past the end, too much, or in too many places", async () => {
    const { bucket, ranges } = await bucketWith("adapters/bounds");
    const read = (budget: { bytes: number; reads: number }, offset: number, length: number) =>
      objectSource(bucket, "adapters/bounds", BYTES, budget).read(offset, length);
    await expect(read(plenty(), BYTES - 5, 6)).rejects.toThrow(`expected 6 bytes, got the end of the file at ${BYTES}`);
    await expect(read(plenty(), -1, 2)).rejects.toThrow("byte -1");
    await expect(read({ bytes: 1000, reads: 9 }, 0, 600_000)).rejects.toThrow("headers of at most");
    expect(ranges).toEqual([]);
    const source = objectSource(bucket, "adapters/bounds", BYTES, { bytes: BYTES, reads: 2 });
    await source.read(0, 1);
    await source.read(600_000, 1);
    await expect(source.read(1_200_000, 1)).rejects.toThrow("headers of at most");
  });
});
