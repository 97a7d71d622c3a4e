import { env } from "cloudflare:workers";
import { beforeAll, describe, expect, it } from "vitest";
import { datasetKey } from "../../../edge/training-files.ts";
import { sha256Hex } from "../../../shared/canonical.ts";
import { type DatasetView, datasetViewSchema } from "../../../shared/training-api.ts";
import { pngFile } from "../file-bytes.ts";
import { call, newKey } from "../support.ts";
import { zipFile } from "../zip-file.ts";

let key: string;
let tenant: string;
beforeAll(async () => {
  ({ key, tenant_id: tenant } = await newKey());
});

/** Not every TextEncoder says that it has a buffer of its own. */
const bytesOf = (text: string) => new Uint8Array(new TextEncoder().encode(text));

type Fields = readonly (readonly [string, string] | readonly [string, Uint8Array<ArrayBuffer>, string])[];
function post(fields: Fields, headers: Record<string, string> = {}): Promise<Response> {
  const form = new FormData();
  for (const [field, value, name] of fields)
    if (typeof value === "string") form.set(field, value);
    else form.append(field, new File([value], name!));
  return call("/v1/datasets", { method: "POST", key, body: form, headers });
}
async function made(answer: Response): Promise<DatasetView> {
  const body: unknown = await answer.json();
  expect([answer.status, body]).toEqual([201, expect.anything()]);
  return datasetViewSchema.parse(body);
}
async function refusal(answer: Response): Promise<unknown> {
  const { status, errors } = await answer.json<{ status: number; errors: { field: string; expected: string; got?: string }[] }>();
  return [status, errors.map(({ field, got }) => [field, got])];
}
const captions = ({ items }: DatasetView) => items.map(({ caption, width, height, split }) => [caption, width, height, split]).sort();

describe("a dataset", () => {
  it("is made of a form's files, with captions, and each picture once", async () => {
    const [cat, dog] = [pngFile(64, 48, "cat"), pngFile(32, 40, "dog")];
    const view = await made(
      await post([
        ["name", "pets"],
        ["file", cat, "cat.png"],
        ["file", dog, "dog.png"],
        ["file", cat, "cat again.png"],
        ["captions", JSON.stringify({ "cat.png": "a sks cat" })],
        ["metadata", `{"file_name":"dog.png","text":"a dog","split":"test"}\n`],
      ]),
    );
    expect(captions(view)).toEqual([
      ["a dog", 32, 40, "test"],
      ["a sks cat", 64, 48, "train"],
    ]);
    expect(await env.BUCKET.head(datasetKey(tenant, await sha256Hex(cat)))).toMatchObject({ size: cat.length });
    const file = await call(`/v1/datasets/${view.id}/files/${await sha256Hex(dog)}`, { key });
    expect([file.status, file.headers.get("content-type"), await sha256Hex(new Uint8Array(await file.arrayBuffer()))]).toEqual([
      200,
      "image/png",
      await sha256Hex(dog),
    ]);
  });

  it("is made of a zip, stored or deflated, with captions in text files, masks and conditions", async () => {
    const files = {
      "set/": new Uint8Array(),
      "set/a.png": pngFile(16, 16, "a"),
      "set/a.txt": bytesOf("the caption of a\n"),
      "set/b.png": pngFile(16, 24, "b".repeat(5000)),
      "set/mask.png": pngFile(16, 24, "mask"),
      "__MACOSX/set/._a.png": new Uint8Array([1]),
      "metadata.jsonl": bytesOf(`{"file_name":"b.png","caption":"b","mask":"mask.png"}`),
    };
    for (const deflate of [false, true]) {
      const view = await made(
        await post([
          ["name", "zipped"],
          ["zip", await zipFile(files, deflate), "set.zip"],
        ]),
      );
      expect(captions(view)).toEqual([
        ["b", 16, 24, "train"],
        ["the caption of a", 16, 16, "train"],
      ]);
      expect(view.items.map(({ mask }) => mask).sort()).toEqual([await sha256Hex(files["set/mask.png"]), null].sort());
    }
  });

  it("is made of uploads by reference, once for an Idempotency-Key", async () => {
    const bytes = pngFile(48, 48, "uploaded");
    const upload = await call("/v1/uploads", { method: "POST", key, body: bytes, headers: { "content-type": "image/png" } });
    const { id } = await upload.json<{ id: string }>();
    const body = { name: "refs", items: [{ image: id, caption: "x" }] };
    const send = () => call("/v1/datasets", { method: "POST", key, json: body, headers: { "idempotency-key": "set-1" } });
    const first = await made(await send());
    const again = await send();
    expect([again.headers.get("idempotent-replayed"), (await made(again)).id]).toEqual(["true", first.id]);
    expect(first.items).toEqual([
      {
        sha256: await sha256Hex(bytes),
        caption: "x",
        split: "train",
        concept: 0,
        mask: null,
        condition: null,
        width: 48,
        height: 48,
        bytes: bytes.length,
        media_type: "image/png",
      },
    ]);
    const absent = { name: "refs", items: [{ image: `upl_${"0".repeat(26)}` }] };
    expect(await refusal(await call("/v1/datasets", { method: "POST", key, json: absent }))).toEqual([
      400,
      [["items.0.image", `upl_${"0".repeat(26)}`]],
    ]);
  });

  it("refuses what is no picture, names that are not there, and a damaged zip", async () => {
    const text = bytesOf("not a picture");
    expect(
      await refusal(
        await post([
          ["name", "x"],
          ["file", text, "a.png"],
        ]),
      ),
    ).toEqual([400, [["a.png", "13 bytes"]]]);
    expect(await refusal(await post([["name", "x"]]))).toEqual([400, [["file", "0"]]]);
    expect(
      await refusal(
        await post([
          ["name", "x"],
          ["file", pngFile(8, 8, "q"), "q.png"],
          ["metadata", `{"file_name":"other.png"}`],
        ]),
      ),
    ).toEqual([400, [["metadata", "other.png"]]]);
    const zip = await zipFile({ "a.png": pngFile(8, 8, "z".repeat(300)) }, true);
    const long = await zipFile({ "a.png": pngFile(8, 8, "a"), "a.txt": bytesOf("x".repeat(2001)) }, true);
    expect(
      await refusal(
        await post([
          ["name", "x"],
          ["zip", long, "a.zip"],
        ]),
      ),
    ).toEqual([400, [["a.txt", "more"]]]);
    // The announced size, in the directory: a small zip may not unpack to more than it says.
    const lying = zip.slice();
    const directory = new DataView(lying.buffer).getUint32(lying.length - 6, true);
    new DataView(lying.buffer).setUint32(directory + 24, 20, true);
    expect(
      await refusal(
        await post([
          ["name", "x"],
          ["zip", lying, "a.zip"],
        ]),
      ),
    ).toEqual([400, [["zip", "more in a.png"]]]);
    expect(
      await refusal(
        await post([
          ["name", "x"],
          ["zip", text, "a.zip"],
        ]),
      ),
    ).toEqual([400, [["zip", "no end of a zip file's directory"]]]);
  });

  it("is listed, changed and deleted by its tenant alone", async () => {
    const [first, second] = [pngFile(16, 16, "one"), pngFile(16, 16, "two")];
    const { id, items } = await made(
      await post([
        ["name", "mine"],
        ["file", first, "1.png"],
        ["file", second, "2.png"],
      ]),
    );
    const { key: other } = await newKey();
    const item = `/v1/datasets/${id}/items/${items[0]!.sha256}`;
    const patch = (as: string, json: unknown) => call(item, { method: "PATCH", key: as, json });
    expect((await patch(other, { caption: "stolen" })).status).toBe(404);
    expect((await call(`/v1/datasets/${id}`, { key: other })).status).toBe(404);
    expect((await call(`/v1/datasets/${id}/files/${items[0]!.sha256}`, { key: other })).status).toBe(404);
    expect((await call(`/v1/datasets/${id}`, { method: "DELETE", key: other })).status).toBe(404);
    const changed = await patch(key, { caption: "new", split: "test", mask: items[1]!.sha256 });
    expect([changed.status, await changed.json()]).toEqual([200, { ...items[0], caption: "new", split: "test", mask: items[1]!.sha256 }]);
    expect(await refusal(await patch(key, { mask: "0".repeat(64) }))).toEqual([400, [["mask", "0".repeat(64)]]]);
    const list = await (await call("/v1/datasets?limit=1", { key })).json<{ data: { id: string; pictures: number }[] }>();
    expect(list.data).toMatchObject([{ id, pictures: 2 }]);
    expect((await call(`/v1/datasets/${id}`, { method: "DELETE", key })).status).toBe(204);
    expect((await call(`/v1/datasets/${id}`, { key })).status).toBe(404);
  });
});
