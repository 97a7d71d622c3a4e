import { env } from "cloudflare:workers";
import { beforeAll, describe, expect, it } from "vitest";
import { adapterKey } from "../../../edge/tenant-files.ts";
import { adapterHash } from "../../../shared/adapter.ts";
import { type AdapterView, adapterViewSchema } from "../../../shared/adapter-resource.ts";
import { sha256Hex } from "../../../shared/canonical.ts";
import { loraFile, pngFile, postAdapter, safetensorsFile, uploadAdapter } from "../files.ts";
import { call, compute, generate, generateHit, generateMiss, newKey, registerModel } from "../support.ts";

let key: string;
let tenant: string;
beforeAll(async () => {
  await registerModel();
  ({ key, tenant_id: tenant } = await newKey());
});

let ranks = 1;
/** A LoRA like no other of these tests. */
const another = (width = 96) => loraFile(width, 2, 32 + ranks++);

async function describeAdapter(name: string, files: Record<string, Uint8Array<ArrayBuffer>>, more: Record<string, unknown> = {}) {
  const described = Object.entries(files).map(async ([path, bytes]) => ({ path, sha256: await sha256Hex(bytes), bytes: bytes.length }));
  return { name, files: await Promise.all(described), ...more };
}
const post = (json: unknown, headers: Record<string, string> = {}) => call("/v1/adapters", { method: "POST", key, json, headers });
async function read(id: string, as = key): Promise<AdapterView> {
  const answer = await call(`/v1/adapters/${id}`, { key: as });
  expect(answer.status).toBe(200);
  return adapterViewSchema.parse(await answer.json());
}
const present = async (bytes: Uint8Array<ArrayBuffer>) => (await env.BUCKET.head(adapterKey(tenant, await sha256Hex(bytes)))) !== null;
const use = (adapter: string, seed: number) => ({ seed, adapters: [{ adapter }] });

describe("an adapter's upload", () => {
  it("is ready after its last file, and tells what it is", async () => {
    const bytes = another();
    const answer = await post(await describeAdapter("by-url", { "style.safetensors": bytes }));
    expect(answer.status).toBe(201);
    const opened = adapterViewSchema.parse(await answer.json());
    expect(opened).toMatchObject({ status: "uploading", kind: null, manifest: null, version: 1, visibility: "private", owned: true });
    expect(opened.hash).toBe(`sha256:${await sha256Hex(bytes)}`);
    const { url, method } = opened.files[0]!.upload!;
    const sent = await call(url, { method, body: bytes });
    expect([sent.status, await sent.json()]).toMatchObject([200, { id: opened.id, status: "ready", kind: "lora" }]);
    expect(await read(opened.id)).toMatchObject({
      status: "ready",
      kind: "lora",
      reasons: [],
      bytes: bytes.length,
      manifest: { cross_attention_dim: 96 },
      files: [{ path: "style.safetensors", upload: null }],
    });
  });

  it("of several files waits for all of them, whose URLs can be asked for again", async () => {
    const [weights, config] = [another(), new Uint8Array(new TextEncoder().encode(`{"r": ${ranks}}`))];
    const files = { "peft/adapter_model.safetensors": weights, "peft/adapter_config.json": config };
    const described = await describeAdapter("folder", files);
    const opened = adapterViewSchema.parse(await (await post(described)).json());
    // The folder's own name does not count.
    expect(opened.hash).toBe(await adapterHash(described.files.map(file => ({ ...file, path: file.path.replace("peft/", "") }))));
    expect(opened.files.map(({ path }) => path)).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
    const uploadOf = (view: AdapterView, path: string) => view.files.find(file => file.path === path)!.upload;
    const first = uploadOf(opened, "adapter_model.safetensors")!;
    expect(await (await call(first.url, { method: "PUT", body: weights })).json()).toMatchObject({ status: "uploading" });
    const again = await read(opened.id);
    expect(uploadOf(again, "adapter_model.safetensors")).toBeNull();
    const incomplete = await call(`/v1/adapters/${opened.id}/complete`, { method: "POST", key });
    expect(await incomplete.json()).toMatchObject({ status: "uploading" });
    const last = await call(uploadOf(again, "adapter_config.json")!.url, { method: "PUT", body: config });
    expect(["ready", "refused"]).toContain((await last.json<AdapterView>()).status);
  });

  it("refuses another hash or length, an altered URL, and one of another file", async () => {
    const bytes = another();
    const opened = adapterViewSchema.parse(await (await post(await describeAdapter("guarded", { a: bytes, b: another() }))).json());
    const [a, b] = opened.files.map(({ upload }) => new URL(upload!.url));
    const put = async (url: string, body: Uint8Array<ArrayBuffer>) => (await call(url, { method: "PUT", body })).status;
    expect(
      await put(
        a!.href,
        Uint8Array.from(bytes, (byte, i) => (i === bytes.length - 1 ? byte ^ 1 : byte)),
      ),
    ).toBe(422);
    expect(await put(a!.href, bytes.slice(0, -1))).toBe(400);
    expect(await put(`${b!.pathname}${a!.search}`, bytes)).toBe(401);
    expect(await put(a!.href.replace(/expires=\d+/, "expires=1"), bytes)).toBe(401);
    expect(await present(bytes)).toBe(false);
    expect(await put(a!.href, bytes)).toBe(200);
  });

  it("in one step is ready at once; a repeat is the same", async () => {
    const bytes = another();
    const adapter = await uploadAdapter(key, "in-one-step", bytes);
    expect(adapter).toMatchObject({
      name: "in-one-step",
      status: "ready",
      files: [{ path: "in-one-step.safetensors", bytes: bytes.length }],
    });
    const again = await postAdapter(key, "in-one-step", bytes);
    expect([again.status, await again.json()]).toMatchObject([200, { id: adapter.id, version: 1 }]);
    const described = await post(await describeAdapter("in-one-step", { "in-one-step.safetensors": bytes }));
    expect([described.status, await described.json()]).toMatchObject([200, { id: adapter.id, status: "ready" }]);
  });

  it("is answered again for the same Idempotency-Key, with fresh URLs of which D1 has none", async () => {
    const json = await describeAdapter("once", { "a.safetensors": another() });
    const headers = { "idempotency-key": "adapter-once" };
    const [first, again] = [await post(json, headers), await post(json, headers)];
    expect([first.status, again.status, again.headers.get("idempotent-replayed")]).toEqual([201, 201, "true"]);
    const [made, replayed] = [await first.json<AdapterView>(), await again.json<AdapterView>()];
    expect(replayed.id).toBe(made.id);
    expect(replayed.files[0]!.upload!.url).toContain("signature=");
    const row = await env.DB.prepare("SELECT response FROM idempotency_keys WHERE key = 'adapter-once'").first<{ response: string }>();
    expect(row!.response).not.toContain("signature=");
  });

  it.each([
    ["no safetensors", pngFile(), /expected/],
    ["a model, not an adapter", safetensorsFile({ "model.diffusion_model.input_blocks.0.0.weight": [4, 4, 3, 3] }), /expected/],
    [
      "a header longer than the file",
      new Uint8Array([255, 255, 0, 0, 0, 0, 0, 0, 0x7b, 0x7d]),
      /header length: expected 2 to 2, got 65535/,
    ],
    ["tensors with a gap", gapped(), /a: expected data from byte 0 on \(no gap or overlap\), got 4/],
  ])("refuses %s, says why, and keeps nothing of it", async (_, bytes, reason) => {
    const answer = await postAdapter(key, "refused", bytes);
    const problem = await answer.json<{ code: string; detail: string }>();
    expect([answer.status, problem.code]).toEqual([422, "adapter_refused"]);
    expect(problem.detail).toMatch(reason);
    expect(await present(bytes)).toBe(false);
    const { data } = await (await call("/v1/adapters", { key })).json<{ data: AdapterView[] }>();
    const listed = data.find(({ hash, name }) => name === "refused" && hash.length > 0)!;
    expect(listed).toMatchObject({ status: "refused", kind: null });
    const used = await call("/v1/generations", { method: "POST", key, json: { prompt: "x", adapters: [{ adapter: listed.id }] } });
    expect(await used.json()).toMatchObject({ errors: [{ field: "adapters.0.adapter", expected: "an adapter that was not refused" }] });
  });

  it("refuses another kind than was announced", async () => {
    const answer = await postAdapter(key, "stated", another(), { kind: "controlnet" });
    expect(await answer.json()).toMatchObject({
      code: "adapter_refused",
      detail: "kind: expected controlnet, as it was announced, got lora",
    });
    expect((await uploadAdapter(key, "stated", another(), { kind: "lora" })).kind).toBe("lora");
  });

  it.each([
    ["a name like an id", { name: "adp_x" }, "name"],
    ["a path that leaves its folder", { files: [{ path: "../x", sha256: "0".repeat(64), bytes: 1 }] }, "files.0.path"],
    ["two files of one path", { files: [1, 2].map(bytes => ({ path: "x", sha256: "0".repeat(64), bytes })) }, "files"],
    ["no file", { files: [] }, "files"],
    ["an unknown field", { scale: 1 }, "scale"],
  ])("refuses %s", async (_, changes, field) => {
    const answer = await post({ ...(await describeAdapter("wrong", { "a.safetensors": another() })), ...changes });
    expect([answer.status, await answer.json()]).toMatchObject([400, { code: "invalid_request", errors: [{ field }] }]);
  });
});

function gapped(): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify({ a: { dtype: "F32", shape: [1], data_offsets: [4, 8] } }));
  return new Uint8Array([text.length, 0, 0, 0, 0, 0, 0, 0, ...text, ...new Uint8Array(8)]);
}

describe("versions", () => {
  it("follow the content: the name is the latest, each stays reachable by id and hash", async () => {
    const [first, second] = [await uploadAdapter(key, "moving", another()), await uploadAdapter(key, "moving", another())];
    expect([first.version, second.version]).toEqual([1, 2]);
    const hashOf = async (reference: string) => {
      const job = await generateMiss(key, { ...use(reference, 100 + ranks++) });
      const { request } = await (await call(`/v1/generations/${job.generation}`, { key })).json<{
        request: { adapters: { hash: string; version: number }[] };
      }>();
      return request.adapters[0]!;
    };
    expect(await hashOf("moving")).toMatchObject({ hash: second.hash, version: 2, name: "moving", kind: "lora" });
    expect(await hashOf(first.id)).toMatchObject({ hash: first.hash, version: 1 });
    expect(await hashOf(first.hash)).toMatchObject({ hash: first.hash, version: 1 });
  });
});

describe("a form", () => {
  const formOf = (files: readonly File[], name = `form-${ranks++}`) => {
    const form = new FormData();
    form.set("name", name);
    for (const file of files) form.append("file", file);
    return form;
  };
  const send = (body: FormData, headers: Record<string, string> = {}) => call("/v1/adapters", { method: "POST", key, body, headers });

  it("of a folder is the same adapter as its files, whatever the folder is called", async () => {
    const [weights, config] = [another(), new Uint8Array(new TextEncoder().encode(`{"peft_type": "LORA", "r": ${ranks}}`))];
    const hashes = new Set<string>();
    for (const folder of ["", "my-lora/", "deep/my-lora/"]) {
      const files = [new File([weights], `${folder}adapter_model.safetensors`), new File([config], `${folder}adapter_config.json`)];
      const view = adapterViewSchema.parse(await (await send(formOf(files))).json());
      expect(view.files.map(({ path }) => path)).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
      hashes.add(view.hash);
    }
    expect(hashes.size).toBe(1);
  });

  it("with two files of one path, or an empty one, is refused by its field", async () => {
    const bytes = another();
    for (const [files, expected] of [
      [[new File([bytes], "a.safetensors"), new File([another()], "a.safetensors")], "paths that differ"],
      [[new File([bytes], "a.safetensors"), new File([], "README.md")], "files that are not empty"],
    ] as const) {
      const answer = await send(formOf(files));
      expect([answer.status, await answer.json()]).toMatchObject([400, { errors: [{ field: "file", expected }] }]);
    }
  });

  it("that is sent again with its Idempotency-Key is the same, though its boundary is another", async () => {
    const [bytes, name, headers] = [another(), `again-${ranks}`, { "idempotency-key": `form-${ranks}` }];
    const first = await send(formOf([new File([bytes], "a.safetensors")], name), headers);
    const again = await send(formOf([new File([bytes], "a.safetensors")], name), headers);
    expect([first.status, again.status, again.headers.get("idempotent-replayed")]).toEqual([201, 201, "true"]);
    expect((await send(formOf([new File([another()], "a.safetensors")], name), headers)).status).toBe(422);
  });
});

it("is asked for again where its object is gone", async () => {
  const bytes = another();
  const adapter = await uploadAdapter(key, "lost", bytes);
  await env.BUCKET.delete(adapterKey(tenant, await sha256Hex(bytes)));
  const opened = adapterViewSchema.parse(await (await post(await describeAdapter("lost", { "lost.safetensors": bytes }))).json());
  expect(opened).toMatchObject({ id: adapter.id, status: "uploading" });
  const sent = await call(opened.files[0]!.upload!.url, { method: "PUT", body: bytes });
  expect(await sent.json()).toMatchObject({ id: adapter.id, status: "ready" });
});

it("can be many in one request, more than a statement of D1 has parameters", async () => {
  const names: string[] = [];
  for (let i = 0; i < 4; i++) names.push((await uploadAdapter(key, `one-of-many-${i}`, another())).name);
  const reference = (i: number) => ({ adapter: names[i] ?? `absent-${i}` });
  const answer = await call("/v1/generations", {
    method: "POST",
    key,
    json: {
      prompt: "x",
      per_image: Array.from({ length: 8 }, (_, i) => ({ adapters: Array.from({ length: 32 }, (_, j) => reference(i * 32 + j)) })),
    },
  });
  const { errors } = await answer.json<{ errors: { got: string }[] }>();
  expect([answer.status, errors.length]).toEqual([400, 8 * 32 - names.length]);
});

describe("visibility", () => {
  it("private: another tenant finds nothing of it, by no name", async () => {
    const adapter = await uploadAdapter(key, "mine", another());
    const stranger = (await newKey()).key;
    expect((await call(`/v1/adapters/${adapter.id}`, { key: stranger })).status).toBe(404);
    for (const reference of [adapter.id, adapter.hash, adapter.name]) {
      const answer = await call("/v1/generations", {
        method: "POST",
        key: stranger,
        json: { prompt: "x", adapters: [{ adapter: reference }] },
      });
      expect([answer.status, await answer.json()]).toMatchObject([400, { errors: [{ field: "adapters.0.adapter" }] }]);
    }
    const { data } = await (await call("/v1/adapters", { key: stranger })).json<{ data: AdapterView[] }>();
    expect(data.map(({ id }) => id)).not.toContain(adapter.id);
  });

  it("public: needs the scope publish; then every tenant uses it, and none but its own deletes it", async () => {
    const bytes = another();
    const refused = await postAdapter(key, "shared-style", bytes, { visibility: "public" });
    expect([refused.status, await refused.json()]).toMatchObject([403, { code: "forbidden" }]);
    const operator = (await newKey(["read", "write", "publish"])).key;
    const adapter = await uploadAdapter(operator, "shared-style", bytes, { visibility: "public" });
    const seen = await read(adapter.id, key);
    expect(seen).toMatchObject({ owned: false, visibility: "public", status: "ready" });
    const job = await generateMiss(key, use("shared-style", 1));
    const row = await env.DB.prepare("SELECT inputs FROM executions WHERE id = (SELECT execution_id FROM job_pictures WHERE job_id = ?)")
      .bind(job.id)
      .first<{ inputs: string }>();
    const owner = await env.DB.prepare("SELECT tenant_id FROM adapters WHERE id = ?").bind(adapter.id).first<{ tenant_id: string }>();
    expect(JSON.parse(row!.inputs)).toEqual({
      files: [{ sha256: await sha256Hex(bytes), bytes: bytes.length, key: adapterKey(owner!.tenant_id, await sha256Hex(bytes)) }],
      adapters: [
        { hash: adapter.hash, files: [{ path: "shared-style.safetensors", sha256: await sha256Hex(bytes), bytes: bytes.length }] },
      ],
    });
    expect((await call(`/v1/adapters/${adapter.id}`, { method: "DELETE", key })).status).toBe(404);
    expect((await call(`/v1/adapters/${adapter.id}`, { method: "DELETE", key: operator })).status).toBe(204);
    expect((await call(`/v1/adapters/${adapter.id}`, { key })).status).toBe(404);
  });

  it("a public name stays with the tenant that published it first", async () => {
    const [first, second] = [(await newKey(["read", "write", "publish"])).key, (await newKey(["read", "write", "publish"])).key];
    const original = await uploadAdapter(first, "contested", another(), { visibility: "public" });
    for (let i = 0; i < 2; i++) await uploadAdapter(second, "contested", another(), { visibility: "public" });
    const chosen = async () => {
      const job = await generateMiss(key, use("contested", 300 + ranks++));
      const view = await (await call(`/v1/generations/${job.generation}`, { key })).json<{ request: { adapters: { hash: string }[] } }>();
      return view.request.adapters[0]!.hash;
    };
    expect(await chosen()).toBe(original.hash);
    const newer = await uploadAdapter(first, "contested", another(), { visibility: "public" });
    expect(await chosen()).toBe(newer.hash);
  });

  it("a tenant's own adapter goes before a public one of its name", async () => {
    const operator = (await newKey(["read", "write", "publish"])).key;
    await uploadAdapter(operator, "common-name", another(), { visibility: "public" });
    const own = await uploadAdapter(key, "common-name", another());
    const job = await generateMiss(key, use("common-name", 2));
    const { request } = await (await call(`/v1/generations/${job.generation}`, { key })).json<{
      request: { adapters: { adapter: string }[] };
    }>();
    expect(request.adapters[0]!.adapter).toBe(own.id);
  });
});

describe("a base of another width", () => {
  it("is refused with both widths named", async () => {
    await uploadAdapter(key, "of-sd2", another(1024));
    const answer = await call("/v1/generations", { method: "POST", key, json: { prompt: "x", adapters: [{ adapter: "of-sd2" }] } });
    const { errors } = await answer.json<{ errors: { field: string; expected: string; got: string }[] }>();
    expect(errors).toHaveLength(1);
    expect(errors[0]!.field).toBe("adapters.0.adapter");
    expect(errors[0]!.expected).toMatch(/\b96\b/);
    expect(errors[0]!.got).toMatch(/\b1024\b/);
  });
});

describe("DELETE /v1/adapters/{id}", () => {
  const remove = (id: string) => call(`/v1/adapters/${id}`, { method: "DELETE", key });

  it("takes its pictures out of the cache, those of other adapters not, and its files unless another adapter has them", async () => {
    const [bytes, kept] = [another(), another()];
    const adapter = await uploadAdapter(key, "to-delete", bytes);
    const other = await uploadAdapter(key, "to-keep", kept);
    const [job, unrelated, plain] = [
      await generateMiss(key, use("to-delete", 1)),
      await generateMiss(key, use("to-keep", 1)),
      await generateMiss(key, { seed: 1 }),
    ];
    for (const { id } of [job, unrelated, plain]) await compute(id);
    const hit = await generateHit(key, use("to-delete", 1));
    expect((await remove(adapter.id)).status).toBe(204);
    expect((await remove(adapter.id)).status).toBe(404);
    expect(await present(bytes)).toBe(false);
    expect(await present(kept)).toBe(true);
    // What a generation shows stays with it.
    expect((await call(hit.pictures[0]!.url!)).status).toBe(200);
    await generateHit(key, use("to-keep", 1));
    await generateHit(key, { seed: 1 });
    const again = await uploadAdapter(key, "to-delete", bytes);
    expect(again.hash).toBe(adapter.hash);
    await generateMiss(key, use("to-delete", 1));
    expect((await remove(other.id)).status).toBe(204);
  });

  it("leaves the cache alone while the same content is there under another name", async () => {
    const bytes = another();
    const [first, second] = [await uploadAdapter(key, "first-name", bytes), await uploadAdapter(key, "second-name", bytes)];
    const job = await generateMiss(key, use("first-name", 1));
    await compute(job.id);
    expect((await remove(first.id)).status).toBe(204);
    expect(await present(bytes)).toBe(true);
    await generateHit(key, use("second-name", 1));
    expect((await remove(second.id)).status).toBe(204);
    expect(await present(bytes)).toBe(false);
  });

  it("keeps what is still computed then out of the cache", async () => {
    const bytes = another();
    const adapter = await uploadAdapter(key, "too-late", bytes);
    const job = await generateMiss(key, use("too-late", 1));
    expect((await remove(adapter.id)).status).toBe(204);
    await compute(job.id);
    await uploadAdapter(key, "too-late", bytes);
    await generateMiss(key, use("too-late", 1));
  });
});

it("lists page by page, each once", async () => {
  const own = (await newKey()).key;
  const made: string[] = [];
  for (let i = 0; i < 3; i++) made.push((await uploadAdapter(own, `page-${i}`, another())).id);
  const seen: string[] = [];
  let cursor: string | null = "";
  while (cursor !== null) {
    const page: { data: AdapterView[]; next_cursor: string | null } = await (
      await call(`/v1/adapters?limit=2${cursor && `&cursor=${cursor}`}`, { key: own })
    ).json();
    seen.push(...page.data.filter(({ owned }) => owned).map(({ id }) => id));
    cursor = page.next_cursor;
  }
  expect(seen).toEqual(made.toReversed());
  expect((await generate(own, { adapters: [] })).answer.status).toBe(202);
});
