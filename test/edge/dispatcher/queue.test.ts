import { createExecutionContext, createMessageBatch, getQueueResult } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { expect, it } from "vitest";
import { consumeQueue, DEAD_LETTER_QUEUE, retryDelay } from "../../../edge/dispatcher/queue.ts";
import { type Env, settings } from "../../../edge/env.ts";
import { newId } from "../../../edge/ids.ts";
import { createSecrets } from "../../../scripts/secrets.ts";
import { type OfferClaims, privateJwkSchema, sign } from "../../../shared/signing.ts";
import { type AcceptedJob, acceptJob, dispatcherOf, executionState, failing, newPool, row } from "./support.ts";

/** Delivers one message as the queue does, and tells how it was answered. */
async function deliver(body: unknown, { queue = "atelier-offers", attempts = 1, bindings = env as Env } = {}) {
  const id = crypto.randomUUID();
  const batch = createMessageBatch(queue, [{ id, timestamp: new Date(), attempts, body }]);
  const context = createExecutionContext();
  await consumeQueue(batch, bindings);
  const { explicitAcks, retryMessages } = await getQueueResult(batch, context);
  const retried = retryMessages.some(({ msgId }) => msgId === id);
  return { id, answer: explicitAcks.includes(id) ? "ack" : retried ? "retry" : "none" };
}

const inAMinute = () => Math.floor(Date.now() / 1000) + 60;

async function signed(
  pool: string,
  { tenant, executions }: AcceptedJob,
  changed: Partial<OfferClaims> = {},
  key = settings(env).OFFER_KEY,
): Promise<string> {
  const { id, params_sha256 } = executions[0]!;
  return sign("offer", { tenant, execution: id, pool, params_sha256, request_id: "req_test", exp: inAMinute(), ...changed }, key);
}

async function stateIn(pool: string, job: AcceptedJob): Promise<string> {
  const { executions } = await dispatcherOf(pool).describe({ v: 1, executions: [job.executions[0]!.id], models: [] });
  return executions[0]!.state;
}

async function securityEvent(message: string): Promise<unknown> {
  const found = await row<{ kind: string; detail: string }>(
    "SELECT kind, detail FROM security_events WHERE json_extract(detail, '$.message') = ?",
    message,
  );
  return found && [found.kind, JSON.parse(found.detail).reason];
}

it("takes a genuine offer to the dispatcher; delivered twice, it changes nothing", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  const offer = await signed(pool, job);
  expect((await deliver({ offer })).answer).toBe("ack");
  expect(await stateIn(pool, job)).toBe("queued");
  const again = await deliver({ offer });
  expect(again.answer).toBe("ack");
  expect(await securityEvent(again.id)).toBeNull();
  expect(await dispatcherOf(pool).sweep({ v: 1 })).toMatchObject({ queued: 1 });
});

const refused: [string, string, (pool: string, job: AcceptedJob) => Promise<unknown>][] = [
  ["not an offer", "malformed", async () => ({ execution: "exe_1" })],
  ["no signed message", "malformed", async () => ({ offer: "nonsense" })],
  [
    "claims that were changed under the signature",
    "bad_signature",
    async (pool, job) => {
      const [header, payload, signature] = (await signed(pool, job)).split(".") as [string, string, string];
      const claims = { ...JSON.parse(atob(payload.replaceAll("-", "+").replaceAll("_", "/"))), params_sha256: "0".repeat(64) };
      return {
        offer: [header, btoa(JSON.stringify(claims)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", ""), signature].join("."),
      };
    },
  ],
  [
    "another key under our key's id",
    "bad_signature",
    async (pool, job) => {
      const other = privateJwkSchema.parse(JSON.parse(createSecrets().OFFER_KEY!));
      return { offer: await signed(pool, job, {}, { ...other, kid: settings(env).OFFER_KEY.kid }) };
    },
  ],
  [
    "another key",
    "unknown_key",
    async (pool, job) => ({ offer: await signed(pool, job, {}, privateJwkSchema.parse(JSON.parse(createSecrets().OFFER_KEY!))) }),
  ],
  [
    "a grant in place of an offer",
    "wrong_type",
    async (_, job) => {
      const { id: execution, params_sha256 } = job.executions[0]!;
      const granted = {
        execution,
        epoch: 1,
        params_sha256,
        attempt_deadline: Date.now(),
        request_id: "r",
        kind: "picture" as const,
        capabilities: { result: "", progress: "", checkpoint: null },
        inputs: [],
        adapters: [],
      };
      return {
        offer: await sign("grant", { instance: newId("instance"), executions: [granted], exp: inAMinute() }, settings(env).OFFER_KEY),
      };
    },
  ],
  [
    "a genuine signature on parameters that D1 doesn't have",
    "altered",
    async (pool, job) => ({ offer: await signed(pool, job, { params_sha256: "0".repeat(64) }) }),
  ],
  [
    "a genuine signature on another tenant",
    "altered",
    async (pool, job) => ({ offer: await signed(pool, job, { tenant: newId("tenant") }) }),
  ],
  ["a genuine signature on another pool", "altered", async (_, job) => ({ offer: await signed(newPool(), job) })],
];

it.each(refused)("refuses %s: acknowledged, a security event, the execution untouched", async (_, reason, make) => {
  const pool = newPool();
  const job = await acceptJob(pool);
  const { id, answer } = await deliver(await make(pool, job));
  expect(answer).toBe("ack");
  expect(await securityEvent(id)).toEqual(["offer_refused", reason]);
  expect(await stateIn(pool, job)).toBe("unknown");
  expect(await executionState(job.executions[0]!.id)).toBe("active");
});

it("drops an expired offer without a security event", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  const { id, answer } = await deliver({ offer: await signed(pool, job, { exp: Math.floor(Date.now() / 1000) - 61 }) });
  expect(answer).toBe("ack");
  expect(await securityEvent(id)).toBeNull();
  expect(await stateIn(pool, job)).toBe("unknown");
});

it("has a message delivered again, later each time, while the dispatcher cannot be asked", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  const offer = await signed(pool, job);
  const bindings = { ...env, DISPATCHER: failing(env.DISPATCHER, "getByName") };
  expect((await deliver({ offer }, { bindings })).answer).toBe("retry");
  expect(await stateIn(pool, job)).toBe("unknown");
  expect([1, 2, 3, 9, 100].map(retryDelay)).toEqual([2, 4, 8, 60, 60]);
});

it("keeps dead letters", async () => {
  const { id, answer } = await deliver({ offer: "a.b.c" }, { queue: DEAD_LETTER_QUEUE, attempts: 11 });
  expect(answer).toBe("ack");
  const letter = await row("SELECT queue, body, attempts FROM dead_letters WHERE id = ?", id);
  expect(letter).toEqual({ queue: DEAD_LETTER_QUEUE, body: '{"offer":"a.b.c"}', attempts: 11 });
  const bindings = { ...env, DB: failing(env.DB, "prepare") };
  expect((await deliver({ offer: "a.b.c" }, { queue: DEAD_LETTER_QUEUE, bindings })).answer).toBe("retry");
});
