import { env } from "cloudflare:workers";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { Env } from "../../edge/env.ts";
import { settings } from "../../edge/env.ts";
import type { AdapterView } from "../../shared/adapter-resource.ts";
import type { UploadView } from "../../shared/upload.ts";
import { loraFile, pngFile, uploadAdapter } from "./files.ts";
import { call, callAdmin, compute, generateHit, generateMiss, newKey, registerModel } from "./support.ts";

const canary = "zanzibar-7f3a prompt that no log may hold";
let lines: string[];

beforeEach(() => {
  lines = [];
  for (const level of ["debug", "log", "info", "warn", "error"] as const)
    vi.spyOn(console, level).mockImplementation((...parts: unknown[]) => void lines.push(parts.map(String).join(" ")));
});
afterEach(() => {
  vi.restoreAllMocks();
});

it("no log line holds a prompt, key, token, signed URL or offer, whatever happens", async () => {
  await registerModel();
  const { key, id } = await newKey();
  const { token } = await (await callAdmin("runner-tokens", { method: "POST", json: { name: "box", pool: "default" } })).json<{
    token: string;
  }>();
  const request = { prompt: canary, negative_prompt: canary, seed: 1 };
  const offers: string[] = [];
  const sendBatch = (messages: { body: { offer: string } }[]) => {
    offers.push(...messages.map(({ body }) => body.offer));
    return Promise.reject(new Error("the queue is down"));
  };
  const job = await generateMiss(key, request, { env: { ...env, OFFERS: { sendBatch } } as unknown as Env });
  await compute(job.id);
  const hit = await generateHit(key, { ...request, output: "b64" });
  await call(hit.pictures[0]!.url!);
  await call("/v1/generations", { method: "POST", key, json: { ...request, sampler: canary, [canary]: canary } });
  await call("/v1/generations", { method: "POST", key, body: `{"prompt": ${canary}`, headers: { "content-type": "application/json" } });
  await env.DB.prepare("CREATE TRIGGER refuse BEFORE INSERT ON job_pictures BEGIN SELECT raise(ABORT, 'refused'); END").run();
  expect(
    (await call("/v1/generations", { method: "POST", key, json: { ...request, seed: 2 }, headers: { "idempotency-key": "k" } })).status,
  ).toBe(500);
  await env.DB.prepare("DROP TRIGGER refuse").run();
  const down = {
    ...env,
    DB: {
      prepare: () => {
        throw new SyntaxError(`Unexpected token in ${canary}`);
      },
    },
  } as unknown as Env;
  expect((await call("/v1/models", { key, env: down })).status).toBe(500);
  const adapter = await uploadAdapter(key, "style", loraFile());
  const inline = `data:image/png;base64,${btoa(String.fromCharCode(...pngFile(64, 64, canary)))}`;
  await generateMiss(key, { ...request, image: inline, per_image: [{ prompt: canary, adapters: [{ adapter: adapter.id }] }] });
  await call("/v1/generations", { method: "POST", key, json: { ...request, image: `data:image/png;base64,${btoa(canary)}` } });
  const hash = { sha256: "0".repeat(64), bytes: 9 };
  const upload = await (await call("/v1/uploads", { method: "POST", key, json: { ...hash, media_type: "image/png" } })).json<UploadView>();
  await call(upload.upload!.url, { method: "PUT", body: new Uint8Array(new TextEncoder().encode(canary)) });
  const files = [{ path: "zanzibar.safetensors", ...hash }];
  const opened = await (
    await call("/v1/adapters", { method: "POST", key, json: { name: "x", token: "zanzibar", files } })
  ).json<AdapterView>();
  await call(opened.files[0]!.upload!.url, { method: "PUT", body: new Uint8Array(9) });
  await call(`/v1/jobs/${(await generateMiss(key, { ...request, seed: 3 })).id}/cancel`, { method: "POST", key });
  await callAdmin(`keys/${id}`, { method: "DELETE" });
  await call("/v1/models", { key });

  const log = lines.join("\n");
  expect(lines.length).toBeGreaterThan(15);
  expect(log).toContain(job.id);
  expect(log).toContain("sending offers failed");
  expect(offers).toHaveLength(1);
  const { ADMIN_TOKEN, URL_KEY, OFFER_KEY } = settings(env);
  const secrets = [
    canary,
    "zanzibar",
    key,
    key.slice(10, 30),
    token,
    token.split(".")[1]!,
    ADMIN_TOKEN,
    URL_KEY,
    OFFER_KEY.d,
    "signature=",
    inline.slice(30, 60),
    btoa(canary).slice(0, 20),
    ...offers,
    ...offers.map(offer => offer.split(".")[2]!),
  ];
  for (const secret of secrets) expect(log).not.toContain(secret);
  for (const line of lines)
    expect(JSON.parse(line)).toMatchObject({ time: expect.any(String), level: expect.any(String), message: expect.any(String) });
});

it("a request's id runs through its log lines and its answer", async () => {
  await registerModel();
  const { key } = await newKey();
  const id = "req_01JD00000000000000000000ZZ";
  const answer = await call("/v1/generations", { method: "POST", key, json: { prompt: "x" }, headers: { "x-request-id": id } });
  expect(answer.headers.get("x-request-id")).toBe(id);
  expect(lines.filter(line => line.includes(id)).map(line => JSON.parse(line).message)).toEqual(
    expect.arrayContaining(["job accepted", "request"]),
  );
  const forged = await call("/healthz", { headers: { "x-request-id": 'x", "level": "error' } });
  expect(forged.headers.get("x-request-id")).toMatch(/^req_[0-9A-HJKMNP-TV-Z]{26}$/);
});
