import { env } from "cloudflare:workers";
import { beforeAll, describe, expect, it } from "vitest";
import { inputKey } from "../../../edge/tenant-files.ts";
import { isValidUploadUrl } from "../../../edge/upload-urls.ts";
import { sha256Hex } from "../../../shared/canonical.ts";
import { INPUT_KEPT_DAYS, MAX_INPUT_BYTES, type UploadView, uploadViewSchema } from "../../../shared/upload.ts";
import { pngFile, uploadPicture } from "../files.ts";
import { call, newKey, registerModel } from "../support.ts";

let key: string;
let tenant: string;
beforeAll(async () => {
  await registerModel();
  ({ key, tenant_id: tenant } = await newKey());
});

const bytesOf = (text: string) => new Uint8Array(new TextEncoder().encode(text));
let made = 0;
const another = () => pngFile(64, 48, `picture ${made++}`);

async function open(bytes: Uint8Array<ArrayBuffer>, changes: Record<string, unknown> = {}): Promise<Response> {
  const json = { sha256: await sha256Hex(bytes), bytes: bytes.length, media_type: "image/png", ...changes };
  return call("/v1/uploads", { method: "POST", key, json });
}
async function opened(bytes: Uint8Array<ArrayBuffer>, changes: Record<string, unknown> = {}): Promise<UploadView> {
  const answer = await open(bytes, changes);
  expect(answer.status).toBe(201);
  return uploadViewSchema.parse(await answer.json());
}
const send = (upload: UploadView, bytes: Uint8Array<ArrayBuffer>, url = upload.upload!.url) => call(url, { method: "PUT", body: bytes });

async function expectRefused(answer: Response, status: number, code: string, detail?: string) {
  expect([answer.status, await answer.json()]).toMatchObject([status, { code, ...(detail !== undefined && { detail }) }]);
}
const stored = async (bytes: Uint8Array<ArrayBuffer>) => env.BUCKET.head(inputKey(tenant, await sha256Hex(bytes)));

describe("an upload whose story is untrue", () => {
  it("is corrected by the next that is told of the same content", async () => {
    const bytes = another();
    const wrong = await opened(bytes, { bytes: bytes.length + 1, media_type: "image/webp" });
    const right = await opened(bytes);
    expect(right).toMatchObject({ id: wrong.id, bytes: bytes.length, media_type: "image/png" });
    expect((await send(right, bytes)).status).toBe(200);
    expect(await (await open(bytes, { bytes: 1 })).json()).toMatchObject({ status: "ready", bytes: bytes.length });
  });

  it("is asked for again where its object is gone, and a file that comes with the request is stored again", async () => {
    const bytes = another();
    const upload = await uploadPicture(key, bytes);
    await env.BUCKET.delete(inputKey(tenant, upload.sha256));
    expect(await opened(bytes)).toMatchObject({ id: upload.id, status: "waiting" });
    await uploadPicture(key, bytes);
    await env.BUCKET.delete(inputKey(tenant, upload.sha256));
    expect(await uploadPicture(key, bytes)).toMatchObject({ id: upload.id, status: "ready" });
    expect((await stored(bytes))?.size).toBe(bytes.length);
  });
});

describe("POST /v1/uploads with a file", () => {
  it("is ready at once, with the size that its header states", async () => {
    const bytes = another();
    const upload = await uploadPicture(key, bytes);
    expect(upload).toMatchObject({ status: "ready", bytes: bytes.length, media_type: "image/png", width: 64, height: 48, upload: null });
    expect(upload.sha256).toBe(await sha256Hex(bytes));
    expect(Date.parse(upload.expires_at) - Date.parse(upload.created_at)).toBe(INPUT_KEPT_DAYS * 24 * 3600_000);
    expect((await stored(bytes))?.size).toBe(bytes.length);
    expect(uploadViewSchema.parse(await (await call(`/v1/uploads/${upload.id}`, { key })).json())).toEqual(upload);
  });

  it("gives the same content the same id, and another tenant one of its own", async () => {
    const bytes = another();
    const upload = await uploadPicture(key, bytes);
    expect((await uploadPicture(key, bytes)).id).toBe(upload.id);
    const other = await newKey();
    expect((await uploadPicture(other.key, bytes)).id).not.toBe(upload.id);
    await expectRefused(await call(`/v1/uploads/${upload.id}`, { key: other.key }), 404, "not_found");
  });

  it("refuses what is no picture, whatever it is called, too many pixels, and other types", async () => {
    const post = (body: Uint8Array<ArrayBuffer>, type: string) =>
      call("/v1/uploads", { method: "POST", key, body, headers: { "content-type": type } });
    await expectRefused(await post(bytesOf("<svg/>"), "image/png"), 400, "invalid_request");
    await expectRefused(
      await post(pngFile(10_000, 10_000), "image/png"),
      400,
      "invalid_request",
      "Expected a picture of at most 67108864 pixels, got 10000 x 10000.",
    );
    const inline = `data:image/png;base64,${btoa(String.fromCharCode(...pngFile(10_000, 10_000)))}`;
    const generation = await call("/v1/generations", { method: "POST", key, json: { prompt: "x", image: inline } });
    expect([generation.status, await generation.json()]).toMatchObject([400, { errors: [{ field: "image", got: "10000 x 10000" }] }]);
    await expectRefused(await post(another(), "image/gif"), 400, "invalid_request");
    await expectRefused(await post(new Uint8Array(MAX_INPUT_BYTES + 1), "image/png"), 413, "payload_too_large");
  });

  it("answers a repeat with the same key again, and refuses the key for another file", async () => {
    const bytes = another();
    const post = (body: Uint8Array<ArrayBuffer>) =>
      call("/v1/uploads", { method: "POST", key, body, headers: { "content-type": "image/png", "idempotency-key": "one file" } });
    const first = await (await post(bytes)).json();
    expect(first).toMatchObject({ code: "idempotency_key_malformed" });
    const keyed = (body: Uint8Array<ArrayBuffer>) =>
      call("/v1/uploads", { method: "POST", key, body, headers: { "content-type": "image/png", "idempotency-key": "one-file" } });
    const [made, again] = [await keyed(bytes), await keyed(bytes)];
    expect(await again.json()).toEqual(await made.json());
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    await expectRefused(await keyed(another()), 422, "idempotency_mismatch");
  });
});

describe("PUT to the URL of an upload", () => {
  it("takes the file without a key, once or again", async () => {
    const bytes = another();
    const upload = await opened(bytes);
    expect(upload).toMatchObject({ status: "waiting", width: null, upload: { method: "PUT", headers: { "content-type": "image/png" } } });
    const answer = await send(upload, bytes);
    expect([answer.status, await answer.json()]).toMatchObject([
      200,
      { id: upload.id, status: "ready", width: 64, height: 48, upload: null },
    ]);
    expect((await send(upload, bytes)).status).toBe(200);
    const again = await open(bytes);
    expect([again.status, await again.json()]).toMatchObject([200, { id: upload.id, status: "ready", upload: null }]);
  });

  it("refuses another hash, length or type, and stores nothing of it", async () => {
    const bytes = another();
    const upload = await opened(bytes);
    const other = Uint8Array.from(bytes, (byte, i) => (i === 40 ? byte ^ 1 : byte));
    const longer = new Uint8Array([...bytes, 0]);
    await expectRefused(await send(upload, other), 422, "hash_mismatch");
    await expectRefused(await send(upload, longer), 400, "invalid_request");
    await expectRefused(await send(upload, bytes.slice(0, -1)), 400, "invalid_request");
    const text = bytesOf(`no picture ${made++}`);
    await expectRefused(
      await send(await opened(text), text),
      400,
      "invalid_request",
      "Expected the first bytes of a file of type image/png, got none that is taken.",
    );
    expect(await stored(bytes)).toBeNull();
    expect(await stored(text)).toBeNull();
    const bomb = pngFile(20_000, 20_000);
    await expectRefused(await send(await opened(bomb), bomb), 400, "invalid_request");
    expect(await stored(bomb)).toBeNull();
  });

  it("refuses an expired or altered URL, one of another upload, and a key of another tenant", async () => {
    const bytes = another();
    const upload = await opened(bytes);
    const url = new URL(upload.upload!.url);
    const changed = (name: string, value: string) => {
      const other = new URL(url);
      other.searchParams.set(name, value);
      return other.href;
    };
    const path = url.pathname;
    const [expires, signature] = [Number(url.searchParams.get("expires")), url.searchParams.get("signature")!];
    expect(expires - Date.now() / 1000).toBeGreaterThan(3590);
    expect(await isValidUploadUrl(env, path, expires, signature)).toBe(true);
    expect(await isValidUploadUrl(env, path, 1, signature)).toBe(false);
    expect(await isValidUploadUrl(env, `${path}0`, expires, signature)).toBe(false);
    for (const wrong of [
      changed("expires", String(expires + 1)),
      changed(
        "signature",
        signature.replace(/^./, first => (first === "0" ? "1" : "0")),
      ),
    ])
      await expectRefused(await send(upload, bytes, wrong), 401, "unauthorized");
    const second = await opened(another());
    await expectRefused(await send(second, bytes, `/v1/uploads/${second.id}${url.search}`), 401, "unauthorized");
    const stranger = (await newKey()).key;
    await expectRefused(await call(path, { method: "PUT", key: stranger, body: bytes }), 404, "not_found");
    expect((await call(path, { method: "PUT", key, body: bytes })).status).toBe(200);
  });

  it.each([
    ["a size of nothing", { bytes: 0 }, "bytes"],
    ["too large a size", { bytes: MAX_INPUT_BYTES + 1 }, "bytes"],
    ["another type", { media_type: "image/svg+xml" }, "media_type"],
    ["a hash that is none", { sha256: "abc" }, "sha256"],
  ])("is not given for %s", async (_, changes, field) => {
    const answer = await open(another(), changes);
    expect(answer.status).toBe(400);
    expect(await answer.json()).toMatchObject({ errors: [{ field }] });
  });
});
