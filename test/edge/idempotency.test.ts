import { env } from "cloudflare:workers";
import { beforeAll, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { type Env, settings } from "../../edge/env.ts";
import type { GenerationView } from "../../shared/job.ts";
import { call, compute, newKey, registerModel } from "./support.ts";

beforeAll(() => registerModel());

let key: string;
beforeEach(async () => {
  key = (await newKey()).key;
});

function post(idempotencyKey: string, request: Record<string, unknown>, bindings?: Env) {
  return call("/v1/generations", {
    method: "POST",
    key,
    json: { prompt: "a cone", ...request },
    headers: { "idempotency-key": idempotencyKey },
    ...(bindings && { env: bindings }),
  });
}

async function generations(): Promise<{ id: string }[]> {
  return (await (await call("/v1/generations", { key })).json<{ data: { id: string }[] }>()).data;
}

describe("Idempotency-Key", () => {
  it("a repeat gets the first answer, also when the state has moved on", async () => {
    const first = await post("a-1", {});
    const body = await first.text();
    expect([first.status, first.headers.get("idempotent-replayed")]).toEqual([202, null]);
    await compute(JSON.parse(body).id);
    const repeat = await post("a-1", {});
    expect([repeat.status, await repeat.text()]).toEqual([202, body]);
    expect(repeat.headers.get("idempotent-replayed")).toBe("true");
    expect(repeat.headers.get("location")).toBe(first.headers.get("location"));
    expect(await generations()).toHaveLength(1);
  });

  it("a stored answer with files brings the files again", async () => {
    const job = await (await post("b-0", { seed: 1 })).json<{ id: string }>();
    await compute(job.id);
    const answers = [await post("b-1", { seed: 1, output: "b64" }), await post("b-1", { seed: 1, output: "b64" })];
    const [first, repeat] = await Promise.all(answers.map(answer => answer.json<{ pictures: { b64: string }[] }>()));
    expect(atob(first!.pictures[0]!.b64).slice(1, 4)).toBe("PNG");
    expect(repeat).toEqual(first);
    const { response } = (await env.DB.prepare("SELECT response FROM idempotency_keys WHERE key = 'b-1'").first<{ response: string }>())!;
    expect(response).not.toContain('"b64":');
  });

  it("a repeat gets URLs that are fresh, and none is stored", async () => {
    const job = await (await post("u-0", { seed: 1 })).json<{ id: string }>();
    await compute(job.id);
    const view = async () => (await (await post("u-1", { seed: 1 })).json<GenerationView>()).pictures[0]!;
    const first = await view();
    const { response } = (await env.DB.prepare("SELECT response FROM idempotency_keys WHERE key = 'u-1'").first<{ response: string }>())!;
    expect(response).not.toContain("signature");
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 2 * settings(env).PICTURE_URL_TTL_S * 1000 });
    onTestFinished(() => void vi.useRealTimers());
    const again = await view();
    expect((await call(first.url!)).status).toBe(401);
    expect((await call(again.url!)).status).toBe(200);
    expect({ ...again, url: null }).toEqual({ ...first, url: null });
  });

  it.each(["", "with blank", "ä", "x".repeat(256)])("%j is malformed", async malformed => {
    const answer = await post(malformed, {});
    expect(answer.status).toBe(400);
    expect(await answer.json()).toMatchObject({ code: "idempotency_key_malformed" });
  });

  it("another body under the same key is refused, and so is another path", async () => {
    const job = await (await post("c-1", {})).json<{ id: string }>();
    expect((await post("c-1", { seed: 1 })).status).toBe(422);
    const other = await call(`/v1/jobs/${job.id}/cancel`, { method: "POST", key, headers: { "idempotency-key": "c-1" } });
    expect(other.status).toBe(422);
    expect(await other.json()).toMatchObject({ code: "idempotency_mismatch" });
  });

  it("keys of other tenants are other keys", async () => {
    expect((await post("d-1", {})).status).toBe(202);
    key = (await newKey()).key;
    const answer = await post("d-1", { seed: 1 });
    expect([answer.status, answer.headers.get("idempotent-replayed")]).toEqual([202, null]);
  });

  it("of two at the same time one is answered and one told to wait", async () => {
    const answers = await Promise.all([post("e-1", {}), post("e-1", {})]);
    expect(answers.map(({ status }) => status).sort()).toEqual([202, 409]);
    const refused = answers.find(({ status }) => status === 409)!;
    expect(refused.headers.get("retry-after")).toBe("2");
    expect(await refused.json()).toMatchObject({ code: "idempotency_in_flight" });
    expect(await generations()).toHaveLength(1);
  });

  it("a refusal is not stored: the repeat is tried anew", async () => {
    expect((await post("f-1", { model: "absent" })).status).toBe(400);
    await registerModel({ name: "absent" });
    expect((await post("f-1", { model: "absent" })).status).toBe(202);
  });

  it("a request that crashed after acceptance is taken over, and creates nothing twice", async () => {
    const crash = () => {
      throw new Error("crash");
    };
    const crashing = { ...env, JOB_EVENTS: { getByName: crash } } as unknown as Env;
    expect((await post("g-1", { seed: 2 }, crashing)).status).toBe(500);
    const [accepted] = await generations();
    const again = await post("g-1", { seed: 2 });
    expect([again.status, (await again.json<{ generation: string }>()).generation]).toEqual([202, accepted!.id]);
    expect(await generations()).toHaveLength(1);
  });

  it("a request that vanished is taken over after two minutes, not before", async () => {
    await post("h-1", {});
    const age = (ms: number) =>
      env.DB.prepare("UPDATE idempotency_keys SET status = NULL, response = NULL, created_at = ? WHERE key = 'h-1'")
        .bind(Date.now() - ms)
        .run();
    await age(110_000);
    expect((await post("h-1", {})).status).toBe(409);
    await age(121_000);
    const taken = await post("h-1", {});
    expect([taken.status, taken.headers.get("idempotent-replayed")]).toEqual([202, null]);
    expect(await generations()).toHaveLength(1);
  });

  it("answers are kept for a day", async () => {
    await post("i-1", {});
    await env.DB.prepare("UPDATE idempotency_keys SET created_at = ? WHERE key = 'i-1'")
      .bind(Date.now() - 25 * 3600_000)
      .run();
    await post("i-2", {});
    expect(await env.DB.prepare("SELECT key FROM idempotency_keys WHERE key = 'i-1'").first()).toBeNull();
  });

  it("holds for cancelling too", async () => {
    const job = await (await post("j-1", {})).json<{ id: string }>();
    const cancel = () => call(`/v1/jobs/${job.id}/cancel`, { method: "POST", key, headers: { "idempotency-key": "j-2" } });
    expect((await cancel()).headers.get("idempotent-replayed")).toBeNull();
    const repeat = await cancel();
    expect([repeat.status, repeat.headers.get("idempotent-replayed")]).toEqual([200, "true"]);
    expect(await repeat.json()).toMatchObject({ id: job.id, status: "canceled" });
  });
});
