import { env } from "cloudflare:workers";
import fc from "fast-check";
import { beforeAll, beforeEach, describe, expect, it } from "vitest";
import { matchesEtag, parseRange } from "../../../edge/artifacts.ts";
import type { PictureView } from "../../../shared/job.ts";
import { call, compute, generateMiss, newKey, readGeneration, registerModel } from "../support.ts";

beforeAll(() => registerModel());

let key: string;
let picture: PictureView;
let path: string;
beforeEach(async () => {
  key = (await newKey()).key;
  const job = await generateMiss(key, { seed: 1 });
  await compute(job.id);
  picture = (await readGeneration(key, job.id)).pictures[0]!;
  path = `/v1/pictures/${picture.id}`;
});

describe("a picture", () => {
  it("is served with the key: its bytes, its hash as entity tag, to be kept for good", async () => {
    const answer = await call(path, { key });
    const file = await answer.arrayBuffer();
    expect(answer.status).toBe(200);
    expect(file.byteLength).toBe(picture.bytes);
    expect(Object.fromEntries(answer.headers)).toMatchObject({
      etag: `"${picture.sha256}"`,
      "cache-control": "private, immutable, max-age=31536000",
      "content-type": "image/png",
      "content-length": String(picture.bytes),
      "content-disposition": `inline; filename="${picture.id}.png"`,
      "x-content-type-options": "nosniff",
      "accept-ranges": "bytes",
      "cross-origin-resource-policy": "cross-origin",
    });
  });

  it("is served by its signed URL without a key, and by no altered one", async () => {
    const url = new URL(picture.url!);
    expect((await call(url.pathname + url.search)).status).toBe(200);
    const altered = (change: (query: URLSearchParams) => void) => {
      const query = new URLSearchParams(url.search);
      change(query);
      return call(`${url.pathname}?${query}`);
    };
    const later = String(Number(url.searchParams.get("expires")) + 1);
    const flipped = url.searchParams.get("signature")!.replace(/^./, digit => (digit === "0" ? "1" : "0"));
    const answers = [
      await altered(query => query.set("expires", later)),
      await altered(query => query.set("signature", flipped)),
      await altered(query => query.set("signature", "")),
      await altered(query => query.delete("expires")),
      await altered(query => query.delete("signature")),
      await call(`/v1/pictures/pic_01JD00000000000000000000AA${url.search}`),
    ];
    expect(answers.map(({ status }) => status)).toEqual([401, 401, 401, 401, 401, 401]);
  });

  it("is not served by a URL that has expired", async () => {
    const job = await generateMiss(key, { seed: 2 }, { env: { ...env, PICTURE_URL_TTL_S: "1" } });
    await compute(job.id);
    const generation = await (await call(`/v1/generations/${job.generation}`, { key, env: { ...env, PICTURE_URL_TTL_S: "1" } })).json<{
      pictures: PictureView[];
    }>();
    const { url } = generation.pictures[0]!;
    await new Promise(resolve => setTimeout(resolve, 2100));
    expect((await call(url!)).status).toBe(401);
  });

  it("is a 404 for another tenant's key", async () => {
    expect((await call(path, { key: (await newKey()).key })).status).toBe(404);
  });

  it("answers 304 to its entity tag", async () => {
    const tagged = (tag: string) => call(path, { key, headers: { "if-none-match": tag } });
    const answer = await tagged(`"${picture.sha256}"`);
    expect([answer.status, await answer.text(), answer.headers.get("etag")]).toEqual([304, "", `"${picture.sha256}"`]);
    expect((await tagged(`"other", W/"${picture.sha256}"`)).status).toBe(304);
    expect((await tagged('"other"')).status).toBe(200);
  });

  it("answers ranges", async () => {
    const whole = new Uint8Array(await (await call(path, { key })).arrayBuffer());
    const part = async (range: string, headers = {}) => {
      const answer = await call(path, { key, headers: { range, ...headers } });
      return [
        answer.status,
        answer.headers.get("content-range"),
        answer.headers.get("content-length"),
        [...new Uint8Array(await answer.arrayBuffer())],
      ];
    };
    const { length } = whole;
    expect(await part("bytes=0-3")).toEqual([206, `bytes 0-3/${length}`, "4", [...whole.slice(0, 4)]]);
    expect(await part("bytes=-5")).toEqual([206, `bytes ${length - 5}-${length - 1}/${length}`, "5", [...whole.slice(-5)]]);
    expect(await part("bytes=10-")).toEqual([206, `bytes 10-${length - 1}/${length}`, String(length - 10), [...whole.slice(10)]]);
    expect(await part("bytes=0-1,3-4")).toEqual([200, null, String(length), [...whole]]);
    expect(await part("bytes=0-3", { "if-range": '"other"' })).toEqual([200, null, String(length), [...whole]]);
    const beyond = await call(path, { key, headers: { range: `bytes=${length}-` } });
    expect([beyond.status, beyond.headers.get("content-range")]).toEqual([416, `bytes */${length}`]);
    expect(await beyond.json()).toMatchObject({ code: "range_not_satisfiable" });
  });

  it("answers HEAD without the file", async () => {
    const answer = await call(path, { key, method: "HEAD" });
    expect([answer.status, await answer.text(), answer.headers.get("content-length"), answer.headers.get("etag")]).toEqual([
      200,
      "",
      String(picture.bytes),
      `"${picture.sha256}"`,
    ]);
  });

  it("is a 404 when its object is gone", async () => {
    const { r2_key } = (await env.DB.prepare("SELECT r2_key FROM pictures WHERE id = ?").bind(picture.id).first<{ r2_key: string }>())!;
    await env.BUCKET.delete(r2_key);
    expect((await call(path, { key })).status).toBe(404);
    expect((await call(path, { key, method: "HEAD" })).status).toBe(404);
  });
});

describe("parseRange", () => {
  it("gives the bytes that a slice gives, whatever range is asked for", () => {
    const bound = fc.option(fc.nat(40), { nil: undefined });
    fc.assert(
      fc.property(bound, bound, fc.integer({ min: 1, max: 30 }), (first, last, bytes) => {
        const header = `bytes=${first ?? ""}-${last ?? ""}`;
        const file = Array.from({ length: bytes }, (_, i) => i);
        const asked =
          first === undefined
            ? last === undefined
              ? undefined
              : file.slice(last === 0 ? bytes : -last)
            : last !== undefined && last < first
              ? undefined
              : file.slice(first, (last ?? bytes) + 1);
        if (asked?.length === 0) {
          expect(() => parseRange(header, bytes)).toThrow(`${bytes} bytes`);
          return;
        }
        const range = parseRange(header, bytes);
        expect(range && file.slice(range.offset, range.offset + range.length)).toEqual(asked);
      }),
    );
  });

  it.each([undefined, "", "bytes", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1, 2-3"])("sends the whole for %j", header => {
    expect(parseRange(header, 10)).toBeUndefined();
  });
});

it("If-None-Match takes any tag, lists and weak tags", () => {
  expect([
    matchesEtag("*", '"a"'),
    matchesEtag('"b", "a"', '"a"'),
    matchesEtag('W/"a"', '"a"'),
    matchesEtag('"ab"', '"a"'),
    matchesEtag(undefined, '"a"'),
  ]).toEqual([true, true, true, false, false]);
});
