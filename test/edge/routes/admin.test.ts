import { env } from "cloudflare:workers";
import { describe, expect, it } from "vitest";
import { isWellFormedKey, verifyApiKey, verifyRunnerToken } from "../../../edge/auth.ts";
import { settings } from "../../../edge/env.ts";
import { call, callAdmin, compute, generateHit, generateMiss, newKey, pocket, readGeneration, registerModel } from "../support.ts";

describe("keys", () => {
  it("are created, listed without their secret, and revoked at once", async () => {
    const created = await callAdmin("keys", { method: "POST", json: { tenant: "acme", name: "server" } });
    expect(created.status).toBe(201);
    const { id, tenant_id, key } = await created.json<{ id: string; tenant_id: string; key: string }>();
    expect(key).toMatch(/^atl_local_[0-9A-Za-z]{36}$/);
    expect(await verifyApiKey(env, key)).toEqual({ tenant: tenant_id, key: id, scopes: ["read", "write"] });
    const again = await (await callAdmin("keys", { method: "POST", json: { tenant: "acme", name: "two", scopes: ["read"] } })).json<{
      tenant_id: string;
    }>();
    expect(again.tenant_id).toBe(tenant_id);
    const text = await (await callAdmin("keys")).text();
    expect(JSON.parse(text).data).toContainEqual({
      id,
      tenant: "acme",
      name: "server",
      scopes: ["read", "write"],
      created_at: expect.any(Number),
      revoked_at: null,
    });
    expect(text).not.toContain(key);
    expect((await call("/v1/models", { key })).status).toBe(200);
    expect((await callAdmin(`keys/${id}`, { method: "DELETE" })).status).toBe(204);
    expect((await call("/v1/models", { key })).status).toBe(401);
    expect((await callAdmin(`keys/${id}`, { method: "DELETE" })).status).toBe(204);
    expect((await callAdmin("keys/key_01JD00000000000000000000AA", { method: "DELETE" })).status).toBe(404);
  });

  it("are stored as hashes under the newest pepper, and older peppers still hold", async () => {
    const { key, id } = await newKey();
    const row = await env.DB.prepare("SELECT hash, pepper_id FROM api_keys WHERE id = ?")
      .bind(id)
      .first<{ hash: string; pepper_id: string }>();
    const peppers = settings(env).PEPPERS;
    expect(row).toEqual({ hash: expect.stringMatching(/^[0-9a-f]{64}$/), pepper_id: Object.keys(peppers).at(-1) });
    const { results } = await env.DB.prepare("SELECT * FROM api_keys").all();
    expect(JSON.stringify(results)).not.toContain(key.slice(10));
    const rotated = { ...env, PEPPERS: JSON.stringify({ ...peppers, newer: "x".repeat(32) }) };
    expect((await verifyApiKey(rotated, key)).key).toBe(id);
    await expect(verifyApiKey({ ...env, PEPPERS: JSON.stringify({ newer: "x".repeat(32) }) }, key)).rejects.toThrow("unknown or revoked");
  });

  it("carry a checksum: every single altered digit is seen without a look into D1", async () => {
    const { key } = await newKey();
    expect(isWellFormedKey(key, "local")).toBe(true);
    for (let i = "atl_local_".length; i < key.length; i++)
      expect(isWellFormedKey(`${key.slice(0, i)}${key[i] === "a" ? "b" : "a"}${key.slice(i + 1)}`, "local")).toBe(false);
  });

  it("refuses a request that makes no sense", async () => {
    for (const json of [
      {},
      { tenant: "", name: "x" },
      { tenant: "x", name: "x", scopes: ["root"] },
      { tenant: "x", name: "x", scopes: [] },
      { tenant: "x", name: "x", more: 1 },
    ])
      expect((await callAdmin("keys", { method: "POST", json })).status).toBe(400);
  });
});

describe("runner tokens", () => {
  it("are created for a pool, listed, and revoked", async () => {
    const created = await callAdmin("runner-tokens", { method: "POST", json: { name: "box", pool: "default" } });
    expect(created.status).toBe(201);
    const { id, token } = await created.json<{ id: string; token: string }>();
    expect(await verifyRunnerToken(env, token)).toEqual({ id, pool: "default" });
    expect((await (await callAdmin("runner-tokens")).json<{ data: unknown[] }>()).data).toContainEqual({
      id,
      name: "box",
      pool: "default",
      created_at: expect.any(Number),
      revoked_at: null,
    });
    for (const bad of [`${token}x`, token.replace(/.$/, "-"), `rnr_01JD00000000000000000000AA.${token.split(".")[1]}`, id, ""])
      await expect(verifyRunnerToken(env, bad)).rejects.toMatchObject({ code: "unauthorized" });
    expect((await callAdmin(`runner-tokens/${id}`, { method: "DELETE" })).status).toBe(204);
    await expect(verifyRunnerToken(env, token)).rejects.toMatchObject({ code: "unauthorized" });
    expect((await callAdmin("runner-tokens/rnr_01JD00000000000000000000AA", { method: "DELETE" })).status).toBe(404);
  });
});

describe("models", () => {
  const other = { name: "other", hash: `sha256:${"b".repeat(64)}` };

  it("are registered, shown to clients without their pool, and changed in place", async () => {
    const { key } = await newKey();
    await registerModel({ name: "shown", max_size: 256 });
    const { pool: _, ...manifest } = { ...pocket, name: "shown", max_size: 256 };
    expect(await (await call("/v1/models/shown", { key })).json()).toEqual({ object: "model", ...manifest });
    await registerModel({ name: "shown", description: "draws" });
    expect(await (await call("/v1/models/shown", { key })).json()).toMatchObject({ max_size: 512, description: "draws" });
    const { data } = await (await call("/v1/models", { key })).json<{ data: { name: string }[] }>();
    expect(data.filter(({ name }) => name === "shown")).toHaveLength(1);
    expect((await (await callAdmin("models")).json<{ data: { pool: string }[] }>()).data[0]!.pool).toBe("default");
    for (const name of ["absent", "Not%20A%20Name"]) expect((await call(`/v1/models/${name}`, { key })).status).toBe(404);
  });

  it("when removed, are unknown, and their cache is empty; generations keep their pictures", async () => {
    const { key, tenant_id } = await newKey();
    await registerModel(other);
    const job = await generateMiss(key, { model: "other", seed: 1 });
    await compute(job.id);
    await generateHit(key, { model: "other", seed: 1 });
    const entries = async () =>
      (await env.DB.prepare("SELECT count(*) AS n FROM cache_entries WHERE tenant_id = ?").bind(tenant_id).first<{ n: number }>())!.n;
    expect(await entries()).toBe(1);
    expect((await callAdmin("models/other", { method: "DELETE" })).status).toBe(204);
    expect(await entries()).toBe(0);
    expect((await call("/v1/generations", { method: "POST", key, json: { prompt: "a red cube", model: "other", seed: 1 } })).status).toBe(
      400,
    );
    const { pictures, model } = await readGeneration(key, job.id);
    expect(model).toBe("other");
    expect((await call(pictures[0]!.url!)).status).toBe(200);
    expect((await callAdmin("models/other", { method: "DELETE" })).status).toBe(404);
  });

  it("when removed, leave no picture behind that no generation shows", async () => {
    const { key } = await newKey();
    await registerModel(other);
    const job = await generateMiss(key, { model: "other", seed: 1 });
    await compute(job.id);
    const { id, url } = (await readGeneration(key, job.id)).pictures[0]!;
    const { r2_key } = (await env.DB.prepare("SELECT r2_key FROM pictures WHERE id = ?").bind(id).first<{ r2_key: string }>())!;
    await env.DB.prepare("DELETE FROM jobs WHERE id = ?").bind(job.id).run();
    expect((await callAdmin("models/other", { method: "DELETE" })).status).toBe(204);
    expect((await call(url!)).status).toBe(404);
    expect(await env.BUCKET.head(r2_key)).toBeNull();
  });

  it("keep their cache while another name stands for the same content, and lose it when the name moves on", async () => {
    const { key } = await newKey();
    await registerModel(other);
    await registerModel({ ...other, name: "alias" });
    const job = await generateMiss(key, { model: "other", seed: 1 });
    await compute(job.id);
    await callAdmin("models/other", { method: "DELETE" });
    await generateHit(key, { model: "alias", seed: 1 });
    await registerModel({ name: "alias", hash: `sha256:${"c".repeat(64)}` });
    await generateMiss(key, { model: "alias", seed: 1 });
    await registerModel({ name: "alias", hash: other.hash });
    await generateMiss(key, { model: "alias", seed: 1 });
  });

  it("refuses a manifest that is not one", async () => {
    const { name: _, ...manifest } = pocket;
    expect((await callAdmin("models/x", { method: "PUT", json: { ...manifest, hash: "moving" } })).status).toBe(400);
    expect((await callAdmin("models/x", { method: "PUT", json: { ...manifest, extra: 1 } })).status).toBe(400);
  });
});

describe("views for the operator", () => {
  it("show dead letters and security events, newest first", async () => {
    for (const [id, time] of [
      ["one", 1],
      ["two", 2],
    ] as const) {
      await env.DB.prepare("INSERT INTO dead_letters (id, queue, body, attempts, created_at) VALUES (?, 'atelier-offers', '{}', 10, ?)")
        .bind(id, time)
        .run();
      await env.DB.prepare(
        "INSERT INTO security_events (id, kind, detail, created_at) VALUES (?, 'offer_refused', '{\"reason\":\"bad_signature\"}', ?)",
      )
        .bind(id, time)
        .run();
    }
    expect((await (await callAdmin("dead-letters")).json<{ data: { id: string }[] }>()).data.map(({ id }) => id)).toEqual(["two", "one"]);
    expect((await (await callAdmin("security-events")).json<{ data: unknown[] }>()).data[0]).toEqual({
      id: "two",
      kind: "offer_refused",
      detail: { reason: "bad_signature" },
      created_at: 2,
    });
  });

  it("show a pool, and the public keys of grants without their private part", async () => {
    expect(await (await callAdmin("dispatchers/idle")).json()).toEqual({ pool: "idle", runners: [], queued: 0, leased: 0, committing: 0 });
    const text = await (await callAdmin("grant-keys")).text();
    const { kid, x, d } = settings(env).GRANT_KEY;
    expect(JSON.parse(text)).toEqual({ keys: [{ kty: "OKP", crv: "Ed25519", x, kid }] });
    expect(text).not.toContain(d);
  });
});
