import { runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { exportJWK, generateKeyPair } from "jose";
import { ulid } from "ulid";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { app } from "../../edge/app.ts";
import { createRunnerToken } from "../../edge/auth.ts";
import { MAX_PROGRESS_BYTES, MAX_RESULT_BYTES, progressKey } from "../../edge/dispatcher/grants.ts";
import { greet } from "../../edge/dispatcher/instances.ts";
import { RUNNER_TOKEN_HEADER } from "../../edge/dispatcher/sockets.ts";
import { accept, enqueue, lease, lose } from "../../edge/dispatcher/store.ts";
import { timesOf } from "../../edge/dispatcher/times.ts";
import { settings } from "../../edge/env.ts";
import { sha256Hex } from "../../shared/canonical.ts";
import { ENGINE_VERSION, PROTOCOL_VERSION } from "../../shared/engine.ts";
import { runnerPaths, stagingKey } from "../../shared/protocol.ts";
import { type Claims, privateJwkSchema, sign } from "../../shared/signing.ts";
import { insertJob } from "./events/rows.ts";

const pngHead = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const file = (length = 5000, head: readonly number[] = pngHead) => Uint8Array.from({ length }, (_, i) => head[i] ?? (i * 7) % 256);

function streamOf(...chunks: Uint8Array[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
}

/** A lease as the dispatcher has it after a runner accepted the grant. */
async function holdLease() {
  const pool = `p${ulid().toLowerCase()}`;
  const execution = `exe_${ulid()}`;
  const instance = `ins_${ulid()}`;
  const model = `sha256:${"1".repeat(64)}`;
  const times = timesOf(settings(env));
  const epoch = await runInDurableObject(env.DISPATCHER.getByName(pool), (_, { storage: { sql } }) => {
    const now = Date.now();
    enqueue(sql, {
      execution,
      tenant: `ten_${ulid()}`,
      params_sha256: "2".repeat(64),
      model_hash: model,
      refiner_hash: "",
      engine_version: ENGINE_VERSION,
      request_id: `req_${ulid()}`,
      batch_key: "3".repeat(64),
      adapters: [],
      kind: "picture",
      deadline_at: 0,
    });
    greet(
      sql,
      { instance, engine_version: ENGINE_VERSION, provider: "cpu", models: [model], max_batch: 1, leases: [] },
      `rnr_${ulid()}`,
      now,
      times,
    );
    const [granted] = lease(sql, { executions: [execution], instance, overtaken: null }, now, times);
    const { epoch } = granted!;
    accept(sql, { execution, epoch }, instance, now);
    return epoch;
  });
  return { pool, execution, instance, epoch, key: stagingKey(execution, epoch) };
}
type Held = Awaited<ReturnType<typeof holdLease>>;

const endLease = ({ pool, execution }: Held) =>
  runInDurableObject(env.DISPATCHER.getByName(pool), (_, { storage: { sql } }) => {
    lose(sql, execution, "no_heartbeat", Date.now(), timesOf(settings(env)));
  });

const inAnHour = () => Math.floor(Date.now() / 1000) + 3600;
function capability(
  { key, pool, execution, epoch, instance }: Held,
  other: Partial<Claims<"capability">> = {},
  signer = settings(env).CAPABILITY_KEY,
) {
  return sign(
    "capability",
    { key, pool, execution, epoch, instance, method: "PUT", max_bytes: MAX_RESULT_BYTES, exp: inAnHour(), ...other },
    signer,
  );
}
const progressCapability = (held: Held, other: Partial<Claims<"capability">> = {}) =>
  capability(held, { method: "POST", key: progressKey(held.execution), max_bytes: MAX_PROGRESS_BYTES, ...other });

async function put(key: string, token: string | undefined, body: BodyInit | null, headers: Record<string, string | undefined> = {}) {
  const bytes = body instanceof Uint8Array ? body : new Uint8Array();
  const all = {
    ...(token !== undefined && { authorization: `Bearer ${token}` }),
    "content-length": String(bytes.length),
    "x-atelier-sha256": await sha256Hex(new Uint8Array(bytes)),
    ...headers,
  };
  const given = Object.entries(all).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return app.request(runnerPaths.object(key), { method: "PUT", body, headers: given }, env);
}
const report = async (held: Held, token: string, body: unknown) =>
  app.request(
    runnerPaths.progress(held.execution),
    { method: "POST", body: typeof body === "string" ? body : JSON.stringify(body), headers: { authorization: `Bearer ${token}` } },
    env,
  );

async function expectProblem(response: Response, status: number, code: string) {
  expect({ status: response.status, problem: await response.json() }).toMatchObject({ status, problem: { code, status } });
  expect(response.headers.get("content-type")).toBe("application/problem+json");
}
const securityEvents = async () =>
  (await env.DB.prepare("SELECT kind, detail FROM security_events ORDER BY id").all<{ kind: string; detail: string }>()).results.map(
    ({ kind, detail }) => ({ kind, detail: JSON.parse(detail) as unknown }),
  );

beforeEach(() => env.DB.exec("DELETE FROM security_events"));
afterEach(() => vi.restoreAllMocks());

describe("PUT /runner/v1/objects/{key}", () => {
  it.each([
    ["png", pngHead, "image/png"],
    ["jpeg", [0xff, 0xd8, 0xff, 0xe0], "image/jpeg"],
    ["webp", [0x52, 0x49, 0x46, 0x46, 1, 2, 3, 4, 0x57, 0x45, 0x42, 0x50], "image/webp"],
  ])("stores a %s file byte for byte", async (_, head, mediaType) => {
    const held = await holdLease();
    const bytes = file(300_000, head);
    expect((await put(held.key, await capability(held), bytes)).status).toBe(201);
    const stored = await env.BUCKET.get(held.key);
    expect(stored?.httpMetadata?.contentType).toBe(mediaType);
    expect(await sha256Hex(new Uint8Array(await stored!.arrayBuffer()))).toBe(await sha256Hex(bytes));
    expect((await put(held.key, await capability(held), bytes)).status).toBe(201);
  });

  it("takes a file that comes in crumbs", async () => {
    const held = await holdLease();
    const bytes = file(200);
    const crumbs = streamOf(...Array.from(bytes, byte => Uint8Array.of(byte)));
    const response = await put(held.key, await capability(held), crumbs, {
      "content-length": "200",
      "x-atelier-sha256": await sha256Hex(bytes),
    });
    expect(response.status).toBe(201);
    expect((await env.BUCKET.head(held.key))?.size).toBe(200);
  });

  const refusals: [string, number, string, (held: Held) => Promise<Response>][] = [
    ["no capability", 401, "unauthorized", held => put(held.key, undefined, file())],
    ["noise instead of a capability", 401, "unauthorized", held => put(held.key, "a.b.c", file())],
    ["an expired capability", 401, "unauthorized", async held => put(held.key, await capability(held, { exp: inAnHour() - 7200 }), file())],
    [
      "another object's key",
      403,
      "forbidden",
      async held => put(stagingKey(held.execution, held.epoch + 1), await capability(held), file()),
    ],
    ["a key that continues the granted one", 403, "forbidden", async held => put(`${held.key}/x`, await capability(held), file())],
    [
      "a key with a way up",
      403,
      "forbidden",
      async held => put(`${held.key.replace("result", "%2e%2e/result")}`, await capability(held), file()),
    ],
    ["a picture's key", 403, "forbidden", async held => put(`pictures/ten_x/${held.execution}.png`, await capability(held), file())],
    ["a progress capability", 403, "forbidden", async held => put(held.key, await progressCapability(held), file())],
    ["a capability for another method", 403, "forbidden", async held => put(held.key, await capability(held, { method: "POST" }), file())],
    ["another epoch", 409, "stale_epoch", async held => put(held.key, await capability(held, { epoch: held.epoch + 1 }), file())],
    ["another instance", 409, "stale_epoch", async held => put(held.key, await capability(held, { instance: `ins_${ulid()}` }), file())],
    [
      "no Content-Length",
      400,
      "invalid_request",
      async held => put(held.key, await capability(held), file(), { "content-length": undefined }),
    ],
    [
      "a strange Content-Length",
      400,
      "invalid_request",
      async held => put(held.key, await capability(held), file(), { "content-length": "5e3" }),
    ],
    ["an empty body", 400, "invalid_request", async held => put(held.key, await capability(held), new Uint8Array())],
    [
      "more bytes than granted",
      413,
      "payload_too_large",
      async held => put(held.key, await capability(held, { max_bytes: 4999 }), file(5000)),
    ],
    [
      "more bytes than announced",
      400,
      "invalid_request",
      async held =>
        put(held.key, await capability(held), streamOf(file(5000), file(9000)), {
          "content-length": "5000",
          "x-atelier-sha256": await sha256Hex(file(5000)),
        }),
    ],
    [
      "fewer bytes than announced",
      400,
      "invalid_request",
      async held => put(held.key, await capability(held), streamOf(file(4000)), { "content-length": "5000" }),
    ],
    ["no hash", 400, "invalid_request", async held => put(held.key, await capability(held), file(), { "x-atelier-sha256": undefined })],
    [
      "a malformed hash",
      400,
      "invalid_request",
      async held => put(held.key, await capability(held), file(), { "x-atelier-sha256": "ABC" }),
    ],
    [
      "another file's hash",
      422,
      "hash_mismatch",
      async held => put(held.key, await capability(held), file(), { "x-atelier-sha256": "0".repeat(64) }),
    ],
    [
      "a file that is no picture",
      400,
      "invalid_request",
      async held => put(held.key, await capability(held), new TextEncoder().encode("<svg xmlns='http://www.w3.org/2000/svg'/>")),
    ],
    [
      "a RIFF file that is no webp",
      400,
      "invalid_request",
      async held => put(held.key, await capability(held), file(99, [0x52, 0x49, 0x46, 0x46, 1, 2, 3, 4, 0x57, 0x41, 0x56, 0x45])),
    ],
    [
      "a body shorter than any head",
      400,
      "invalid_request",
      async held => put(held.key, await capability(held), Uint8Array.of(0x89, 0x50)),
    ],
  ];
  it.each(refusals)("refuses %s with %i %s and stores nothing", async (_, status, code, attempt) => {
    const held = await holdLease();
    await expectProblem(await attempt(held), status, code);
    expect((await env.BUCKET.list({ prefix: `staging/${held.execution}` })).objects).toEqual([]);
    expect((await env.BUCKET.list({ prefix: "pictures/ten_x" })).objects).toEqual([]);
  });

  it("refuses the late upload of a lease that ended, and keeps what its successor stored", async () => {
    const held = await holdLease();
    const token = await capability(held);
    await endLease(held);
    await expectProblem(await put(held.key, token, file()), 409, "stale_epoch");
    expect(await env.BUCKET.head(held.key)).toBe(null);
  });

  it("says 503 while the object store fails, and takes the file afterwards", async () => {
    const held = await holdLease();
    const failing = new Proxy(env.BUCKET, {
      get: (bucket, name) =>
        name === "put"
          ? () => Promise.reject(new Error("put: We encountered an internal error. Please try again. (10001)"))
          : Reflect.get(bucket, name),
    });
    const headers = {
      authorization: `Bearer ${await capability(held)}`,
      "content-length": "5000",
      "x-atelier-sha256": await sha256Hex(file()),
    };
    const response = await app.request(runnerPaths.object(held.key), { method: "PUT", body: file(), headers }, { ...env, BUCKET: failing });
    await expectProblem(response, 503, "unavailable");
    expect((await put(held.key, await capability(held), file())).status).toBe(201);
  });

  it("records forged and misused capabilities for the operator, and neither expiry nor noise", async () => {
    const held = await holdLease();
    const { CAPABILITY_KEY, GRANT_KEY } = settings(env);
    const { privateKey } = await generateKeyPair("EdDSA", { extractable: true });
    const forged = privateJwkSchema.parse({ ...(await exportJWK(privateKey)), kid: CAPABILITY_KEY.kid });
    const [head, body, signature] = (await capability(held)).split(".") as [string, string, string];
    const altered = `${head}.${btoa(atob(body).replace('"PUT"', '"GET"')).replace(/=+$/, "")}.${signature}`;
    const grant = await sign("grant", { instance: held.instance, exp: inAnHour(), executions: [] }, GRANT_KEY);
    const offenders = [await capability(held, {}, forged), await capability(held, {}, { ...forged, kid: "unknown" }), altered, grant];
    for (const token of offenders) await expectProblem(await put(held.key, token, file()), 401, "unauthorized");
    await put("staging/other/1/result", await capability(held), file());
    await put(held.key, await capability(held, { exp: inAnHour() - 7200 }), file());
    await put(held.key, "noise", file());
    const events = await securityEvents();
    expect(events.map(({ kind, detail }) => [kind, (detail as { reason?: string }).reason])).toEqual([
      ["capability_refused", "bad_signature"],
      ["capability_refused", "unknown_key"],
      ["capability_refused", "bad_signature"],
      ["capability_refused", "wrong_type"],
      ["capability_misused", undefined],
    ]);
    expect(await env.BUCKET.head(held.key)).toBe(null);
  });
});

describe("GET /runner/v1/objects/{key}", () => {
  const input = `inputs/ten_${ulid()}/${"5".repeat(64)}`;
  const reading = (held: Held, other: Partial<Claims<"capability">> = {}) =>
    capability(held, { method: "GET", key: input, max_bytes: 1000, ...other });
  const get = (key: string, token: string) => app.request(runnerPaths.object(key), { headers: { authorization: `Bearer ${token}` } }, env);

  it("streams exactly the object that the capability names, and lets nobody keep it", async () => {
    await env.BUCKET.put(input, file(1000));
    const answer = await get(input, await reading(await holdLease()));
    expect([answer.status, answer.headers.get("content-length"), answer.headers.get("cache-control")]).toEqual([200, "1000", "no-store"]);
    expect(new Uint8Array(await answer.arrayBuffer())).toEqual(file(1000));
  });

  it("refuses another key, another method, another size, an ended lease, and what is gone", async () => {
    await env.BUCKET.put(input, file(1000));
    const held = await holdLease();
    const other = `inputs/ten_${ulid()}/${"6".repeat(64)}`;
    await env.BUCKET.put(other, file(10));
    await expectProblem(await get(other, await reading(held)), 403, "forbidden");
    await expectProblem(await get(input, await capability(held, { key: input })), 403, "forbidden");
    expect((await securityEvents()).map(({ kind }) => kind)).toEqual(["capability_misused", "capability_misused"]);
    await expectProblem(await get(input, await reading(held, { max_bytes: 999 })), 409, "conflict");
    await expectProblem(await get(input, await reading(held, { exp: 1 })), 401, "unauthorized");
    await env.BUCKET.delete(input);
    await expectProblem(await get(input, await reading(held)), 404, "not_found");
    await env.BUCKET.put(input, file(1000));
    await endLease(held);
    await expectProblem(await get(input, await reading(held)), 409, "stale_epoch");
  });
});

describe("POST /runner/v1/executions/{id}/progress", () => {
  async function waitingJob(execution: string, index: number, state = "pending") {
    const { job, tenant } = await insertJob();
    await env.DB.prepare(
      "INSERT INTO job_pictures (job_id, idx, tenant_id, seed, request_hash, execution_id, state, cached) VALUES (?, ?, ?, 1, 'h', ?, ?, 0)",
    )
      .bind(job, index, tenant, execution, state)
      .run();
    return job;
  }
  const progressOf = (job: string) => env.JOB_EVENTS.getByName(job).progress({ v: 1, job });

  it("reaches every job that waits for the execution, under its own index, and no other", async () => {
    const held = await holdLease();
    const [first, second, ended, other] = [
      await waitingJob(held.execution, 0),
      await waitingJob(held.execution, 3),
      await waitingJob(held.execution, 0, "canceled"),
      await waitingJob(`exe_${ulid()}`, 0),
    ];
    const preview = "data:image/jpeg;base64,AAAA";
    expect((await report(held, await progressCapability(held), { step: 3, steps: 20, preview })).status).toBe(204);
    expect(await progressOf(first)).toEqual([{ index: 0, step: 3, steps: 20 }]);
    expect(await progressOf(second)).toEqual([{ index: 3, step: 3, steps: 20 }]);
    expect(await progressOf(ended)).toEqual([]);
    expect(await progressOf(other)).toEqual([]);
  });

  it("answers 204 where nobody waits", async () => {
    const held = await holdLease();
    expect((await report(held, await progressCapability(held), { step: 3, steps: 20 })).status).toBe(204);
  });

  const body = { step: 1, steps: 20 };
  const refusals: [string, number, string, (held: Held) => Promise<Response>][] = [
    ["noise instead of a capability", 401, "unauthorized", held => report(held, "noise", body)],
    ["an upload capability", 403, "forbidden", async held => report(held, await capability(held), body)],
    ["another execution's capability", 403, "forbidden", async held => report(held, await progressCapability(await holdLease()), body)],
    ["another epoch", 409, "stale_epoch", async held => report(held, await progressCapability(held, { epoch: held.epoch + 1 }), body)],
    ["what is not JSON", 400, "invalid_json", async held => report(held, await progressCapability(held), "{")],
    ["an empty body", 400, "invalid_json", async held => report(held, await progressCapability(held), "")],
    ["a step below 0", 400, "invalid_request", async held => report(held, await progressCapability(held), { step: -1, steps: 20 })],
    ["an unknown field", 400, "invalid_request", async held => report(held, await progressCapability(held), { ...body, prompt: "x" })],
    [
      "a preview that is no picture",
      400,
      "invalid_request",
      async held => report(held, await progressCapability(held), { ...body, preview: "data:text/html;base64,AAAA" }),
    ],
    [
      "a preview beyond its cap",
      400,
      "invalid_request",
      async held => report(held, await progressCapability(held), { ...body, preview: `data:image/png;base64,${"A".repeat(65536)}` }),
    ],
    [
      "a body beyond the capability's cap",
      413,
      "payload_too_large",
      async held => report(held, await progressCapability(held, { max_bytes: 100 }), " ".repeat(101)),
    ],
  ];
  it.each(refusals)("refuses %s with %i %s and tells nobody", async (_, status, code, attempt) => {
    const held = await holdLease();
    const job = await waitingJob(held.execution, 0);
    await expectProblem(await attempt(held), status, code);
    expect(await progressOf(job)).toEqual([]);
  });
});

describe("GET /runner/v1/socket", () => {
  const connect = async (token: string | undefined, headers: Record<string, string> = {}) =>
    app.request(
      runnerPaths.socket,
      { headers: { upgrade: "websocket", ...(token !== undefined && { authorization: `Bearer ${token}` }), ...headers } },
      env,
    );
  const hello = (instance: string) =>
    JSON.stringify({
      v: PROTOCOL_VERSION,
      type: "hello",
      instance,
      engine_version: ENGINE_VERSION,
      provider: "cpu",
      models: [],
      max_batch: 1,
      leases: [],
    });

  it("hands a runner with a valid token to its pool's dispatcher, under the token's own id", async () => {
    const pool = `p${ulid().toLowerCase()}`;
    const { id, token } = await createRunnerToken(env, { name: "test", pool });
    const response = await connect(token, { [RUNNER_TOKEN_HEADER]: `rnr_${ulid()}` });
    expect(response.status).toBe(101);
    const socket = response.webSocket!;
    const answer = new Promise<string>(resolve => socket.addEventListener("message", event => resolve(String(event.data))));
    socket.accept();
    const instance = `ins_${ulid()}`;
    socket.send(hello(instance));
    expect(JSON.parse(await answer)).toMatchObject({ v: PROTOCOL_VERSION, type: "welcome", leases: [] });
    const { runners } = await env.DISPATCHER.getByName(pool).sweep({ v: 1 });
    expect(runners).toMatchObject([{ instance, token: id }]);
    socket.close();
  });

  it.each([
    ["no token", () => connect(undefined)],
    ["noise", () => connect("noise")],
    ["a token that was never given out", () => connect(`rnr_${ulid()}.${"a".repeat(30)}`)],
    ["an internal header instead of a token", () => connect(undefined, { [RUNNER_TOKEN_HEADER]: `rnr_${ulid()}` })],
    [
      "a revoked token",
      async () => {
        const { id, token } = await createRunnerToken(env, { name: "test", pool: "default" });
        await env.DB.prepare("UPDATE runner_tokens SET revoked_at = 1 WHERE id = ?").bind(id).run();
        return connect(token);
      },
    ],
    [
      "another token's secret",
      async () => {
        const [one, two] = [
          await createRunnerToken(env, { name: "one", pool: "default" }),
          await createRunnerToken(env, { name: "two", pool: "default" }),
        ];
        return connect(`${one.id}.${two.token.split(".")[1]}`);
      },
    ],
  ])("refuses %s", async (_, attempt) => {
    await expectProblem(await attempt(), 401, "unauthorized");
  });

  it("asks for an upgrade", async () => {
    const { token } = await createRunnerToken(env, { name: "test", pool: "default" });
    await expectProblem(await connect(token, { upgrade: "" }), 400, "invalid_request");
  });
});

describe("logs", () => {
  it("carry no token, whatever is done with it", async () => {
    const lines: string[] = [];
    for (const level of ["debug", "info", "warn", "error", "log"] as const)
      vi.spyOn(console, level).mockImplementation((...args) => void lines.push(args.map(String).join(" ")));
    const held = await holdLease();
    const { token: runnerToken } = await createRunnerToken(env, { name: "test", pool: "default" });
    const good = await capability(held);
    const progress = await progressCapability(held);
    const foreign = `${good.slice(0, -8)}AAAAAAAA`;
    await put(held.key, good, file());
    await put(held.key, foreign, file());
    await put("staging/other/1/result", good, file());
    await put(held.key, good, file(), { "x-atelier-sha256": "0".repeat(64) });
    await report(held, progress, { step: 1, steps: 2 });
    await report(held, good, { step: 1, steps: 2 });
    await app.request(runnerPaths.socket, { headers: { upgrade: "websocket", authorization: `Bearer ${runnerToken}x` } }, env);
    await endLease(held);
    await put(held.key, good, file());
    const all = lines.join("\n");
    expect(all).toContain("result uploaded");
    expect(all).toContain("capability_refused");
    for (const secret of [good, foreign, progress, runnerToken]) {
      expect(all).not.toContain(secret);
      expect(all).not.toContain(secret.split(".").at(-1)!);
    }
    for (const line of lines) expect(() => JSON.parse(line)).not.toThrow();
  });
});
