import { evictDurableObject, runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { expect, it } from "vitest";
import { settings } from "../../../edge/env.ts";
import { newId } from "../../../edge/ids.ts";
import { publicJwk, verify } from "../../../shared/signing.ts";
import {
  acceptJob,
  dispatcherOf,
  executionState,
  failing,
  fallDue,
  jobStatus,
  MODEL_HASH,
  newPool,
  offer,
  replaceBindings,
  row,
  stage,
  TestRunner,
  until,
  withSql,
} from "./support.ts";

/** What goes wrong in a dispatcher's life, over real sockets, SQL, D1 and R2. */

async function countPictures(execution: string): Promise<number | undefined> {
  return (await row<{ n: number }>("SELECT COUNT(*) AS n FROM pictures WHERE execution_id = ?", execution))?.n;
}

/** A pool with one queued job, and a runner that computes it. */
async function computing(pictures = 1) {
  const pool = newPool();
  const job = await acceptJob(pool, { pictures });
  await offer(pool, job);
  const runner = await TestRunner.connect(pool, { ready: 1 });
  const lease = await runner.acceptLease();
  return { pool, job, runner, lease, id: job.executions[0]!.id };
}

async function complete(runner: TestRunner, lease: { execution: string; epoch: number }): Promise<void> {
  const { execution, epoch } = lease;
  runner.say({ type: "complete", execution, epoch, result: await stage(lease) });
}

it("lets a second runner finish what a lost one began; the late result is refused, and there is one picture", async () => {
  const { pool, job, runner, lease, id } = await computing();
  await fallDue(pool, "leases", "last_heartbeat");
  expect(await runner.next("cancel")).toMatchObject({ leases: [{ execution: id, epoch: 1 }] });
  expect(await dispatcherOf(pool).holds({ v: 1, execution: id, epoch: 1, instance: runner.instance })).toBe(false);

  const second = await TestRunner.connect(pool, { ready: 1 });
  const next = await second.acceptLease();
  expect(next).toMatchObject({ execution: id, epoch: 2 });
  await complete(runner, lease);
  expect(await runner.next("refused")).toMatchObject({ execution: id, epoch: 1 });
  await complete(second, next);
  await second.next("committed");
  await complete(runner, lease);
  expect(await runner.next("refused")).toMatchObject({ execution: id, epoch: 1 });
  expect(await countPictures(id)).toBe(1);
  expect(await row("SELECT epoch FROM executions WHERE id = ?", id)).toEqual({ epoch: 2 });
  expect(await jobStatus(job.job)).toEqual({ status: "succeeded", error: null });
});

it("requeues nothing when a socket is lost: the runner comes back and finishes", async () => {
  const { pool, runner, lease, id } = await computing();
  runner.close();
  await until(
    async () => (await dispatcherOf(pool).describe({ v: 1, executions: [], models: [MODEL_HASH] })).served.length === 0,
    "the end of the socket",
  );
  const other = await TestRunner.connect(pool, { ready: 1 });
  expect(await dispatcherOf(pool).describe({ v: 1, executions: [id], models: [] })).toMatchObject({
    executions: [{ state: "running", epoch: 1 }],
  });

  const { instance, token } = runner;
  const back = await TestRunner.open(pool, { instance, token });
  back.hello({ leases: [lease, { execution: newId("execution"), epoch: 3 }].map(({ execution, epoch }) => ({ execution, epoch })) });
  expect((await back.next("welcome")).leases.map(({ verdict }) => verdict)).toEqual(["keep", "abandon"]);
  await complete(back, lease);
  expect(await back.next("committed")).toMatchObject({ execution: id, epoch: 1 });
  expect(other.unread("lease")).toBe(0);
});

it("answers a complete that was repeated after the answer got lost", async () => {
  const { pool, runner, lease } = await computing();
  await complete(runner, lease);
  await runner.next("committed");
  const { execution, epoch } = lease;
  const back = await TestRunner.open(pool, { instance: runner.instance, token: runner.token });
  back.hello({ leases: [{ execution, epoch }] });
  expect((await back.next("welcome")).leases).toEqual([{ execution, epoch, verdict: "keep" }]);
  await complete(back, lease);
  expect(await back.next("committed")).toMatchObject({ execution, epoch });
  expect(await runner.untilClosed()).toBe(4409);
});

it("withdraws a grant that nobody accepts and gives it to the next runner", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  await offer(pool, job);
  const deaf = await TestRunner.connect(pool, { ready: 1 });
  await deaf.next("lease");
  await fallDue(pool, "leases", "ack_deadline");
  expect(await deaf.next("cancel")).toMatchObject({ leases: [{ execution: job.executions[0]!.id, epoch: 1 }] });
  const runner = await TestRunner.connect(pool, { ready: 1 });
  expect(await runner.acceptLease()).toMatchObject({ epoch: 2 });
  deaf.say({ type: "accept", leases: [{ execution: job.executions[0]!.id, epoch: 1 }] });
  await deaf.next("cancel");
  expect(await withSql(pool, sql => sql.exec("SELECT attempts FROM executions").one())).toEqual({ attempts: 0 });
});

it("stops a runner whose job is canceled, and takes nothing from it afterwards", async () => {
  const { pool, job, runner, lease, id } = await computing();
  await env.DB.batch([
    env.DB.prepare("UPDATE jobs SET status = 'canceled' WHERE id = ?").bind(job.job),
    env.DB.prepare("UPDATE job_pictures SET state = 'canceled' WHERE job_id = ?").bind(job.job),
    env.DB.prepare("UPDATE executions SET state = 'abandoned' WHERE id = ?").bind(id),
  ]);
  await dispatcherOf(pool).abandon({ v: 1, executions: [id] });
  expect(await runner.next("cancel")).toMatchObject({ leases: [{ execution: id, epoch: 1 }] });
  await until(async () => (await executionState(id)) === "canceled", "the end in D1");
  await complete(runner, lease);
  await runner.next("refused");
  expect(await countPictures(id)).toBe(0);
  expect(await offer(pool, job)).toEqual(["tombstoned"]);
});

it("keeps a cancel that overtakes the offer", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  const { id } = job.executions[0]!;
  await env.DB.prepare("UPDATE executions SET state = 'abandoned' WHERE id = ?").bind(id).run();
  await dispatcherOf(pool).abandon({ v: 1, executions: [id] });
  expect(await offer(pool, job)).toEqual(["tombstoned"]);
  await until(async () => (await executionState(id)) === "canceled", "the end in D1");
});

it("fails a job at once with an error that is the same everywhere, and gives up its other pictures", async () => {
  const { pool, job, runner, lease } = await computing(2);
  const { execution, epoch } = lease;
  runner.say({ type: "fail", execution, epoch, code: "model_unavailable", message: "The model cannot be loaded.", retryable: false });
  await until(async () => (await jobStatus(job.job)).status === "failed", "the end of the job");
  expect((await jobStatus(job.job)).error).toEqual({ code: "model_unavailable", message: "The model cannot be loaded." });
  const [other] = job.executions.filter(({ id }) => id !== execution);
  await until(async () => (await executionState(other!.id)) === "canceled", "the end of the other picture");
  expect(await executionState(execution)).toBe("failed");
  expect(await dispatcherOf(pool).sweep({ v: 1 })).toMatchObject({ queued: 0, leased: 0, committing: 0 });
});

it("fails a job when its last attempt is lost", async () => {
  const { pool, job, runner } = await computing();
  for (let epoch = 1; epoch <= 3; epoch++) {
    const execution = job.executions[0]!.id;
    runner.say({ type: "fail", execution, epoch, code: "runner_failed", message: "Out of memory.", retryable: true });
    if (epoch === 3) break;
    runner.say({ type: "ready", n: 1, resident: [] });
    expect(await runner.acceptLease()).toMatchObject({ epoch: epoch + 1 });
  }
  await until(async () => (await jobStatus(job.job)).status === "failed", "the end of the job");
  expect((await jobStatus(job.job)).error?.code).toBe("attempts_exhausted");
  expect(await withSql(pool, sql => sql.exec("SELECT state FROM executions").one())).toEqual({ state: "done" });
});

it("refuses a result whose file is not there or is another one, and has it computed again", async () => {
  const { runner, lease, id } = await computing();
  const { execution } = lease;
  const result = await stage(lease);
  runner.say({ type: "complete", execution, epoch: 1, result: { ...result, sha256: "0".repeat(64) } });
  expect((await runner.next("refused")).reason).toBe(`expected a staged file with SHA-256 ${"0".repeat(64)}, got ${result.sha256}`);
  runner.say({ type: "ready", n: 1, resident: [] });
  const second = await runner.acceptLease();
  expect(second.epoch).toBe(2);
  runner.say({ type: "complete", execution, epoch: 2, result });
  expect((await runner.next("refused")).reason).toBe("there is no staged file");
  runner.say({ type: "ready", n: 1, resident: [] });
  const third = await runner.acceptLease();
  await complete(runner, third);
  expect(await runner.next("committed")).toMatchObject({ epoch: 3 });
  expect(await countPictures(id)).toBe(1);
});

it("keeps a result while R2 does not take it, and commits it when R2 does again", async () => {
  const { pool, job, runner, lease, id } = await computing();
  await replaceBindings(pool, { BUCKET: failing(env.BUCKET, "put") });
  await complete(runner, lease);
  await until(
    async () => (await withSql(pool, sql => sql.exec("SELECT settle_failures FROM executions").one())).settle_failures === 1,
    "a failure",
  );
  expect(await dispatcherOf(pool).describe({ v: 1, executions: [id], models: [] })).toMatchObject({
    executions: [{ state: "committing" }],
  });
  await fallDue(pool, "executions", "settle_at");
  expect(await jobStatus(job.job)).toMatchObject({ status: "active" });
  await replaceBindings(pool, { BUCKET: env.BUCKET });
  await fallDue(pool, "executions", "settle_at");
  expect(await runner.next("committed")).toMatchObject({ execution: id, epoch: 1 });
  expect(await jobStatus(job.job)).toMatchObject({ status: "succeeded" });
});

it("waits for a settlement that hangs, without looking again and again", async () => {
  const { pool, runner, lease } = await computing();
  let answer: () => void = () => undefined;
  const answered = new Promise<void>(resolve => {
    answer = resolve;
  });
  const slow = new Proxy(env.BUCKET, {
    get: (target, name) =>
      name === "get" ? (key: string) => answered.then(() => target.get(key)) : (Reflect.get(target, name) as () => unknown).bind(target),
  });
  await replaceBindings(pool, { BUCKET: slow });
  await complete(runner, lease);
  await until(
    async () => (await withSql(pool, sql => sql.exec("SELECT settle_failures FROM executions").one())).settle_failures === 1,
    "the settlement",
  );
  await fallDue(pool, "executions", "settle_at");
  expect(await runInDurableObject(dispatcherOf(pool), (_, { storage }) => storage.getAlarm())).toBeGreaterThan(Date.now());
  await runInDurableObject(dispatcherOf(pool), () => answer());
  await runner.next("committed");
});

it("commits once although a commit ended without our hearing of it", async () => {
  const { pool, runner, lease, id } = await computing();
  const { execution, epoch } = lease;
  const result = await stage(lease);
  const lostAnswer = new Proxy(env.DB, {
    get: (target, name) =>
      name === "batch"
        ? async (statements: D1PreparedStatement[]) => {
            await target.batch(statements);
            throw new Error("the answer got lost");
          }
        : (Reflect.get(target, name) as () => unknown).bind(target),
  });
  await replaceBindings(pool, { DB: lostAnswer });
  runner.say({ type: "complete", execution, epoch, result });
  await until(async () => (await executionState(id)) === "succeeded", "the commit");
  await replaceBindings(pool, { DB: env.DB });
  await fallDue(pool, "executions", "settle_at");
  await runner.next("committed");
  expect(await countPictures(id)).toBe(1);
});

it("fails an execution whose parameters were altered in D1 after they were signed", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  await offer(pool, job);
  await env.DB.prepare("UPDATE executions SET params = json_set(params, '$.seed', 99) WHERE id = ?").bind(job.executions[0]!.id).run();
  const runner = await TestRunner.connect(pool, { ready: 1 });
  await until(async () => (await jobStatus(job.job)).status === "failed", "the end of the job");
  expect((await jobStatus(job.job)).error).toEqual({
    code: "internal",
    message: "The execution could not be granted: its parameters are not what was signed.",
  });
  expect(runner.unread("lease")).toBe(0);
});

it("hibernates with its sockets: nothing is kept in memory that matters", async () => {
  const { pool, runner, lease, id } = await computing();
  await evictDurableObject(dispatcherOf(pool));
  runner.say({ type: "heartbeat", leases: [{ execution: id, epoch: 1, counter: 1 }] });
  await complete(runner, lease);
  expect(await runner.next("committed")).toMatchObject({ execution: id, epoch: 1 });
});

it("comes back from a restart that drops every socket, with executions queued, leased and committing", async () => {
  const { pool, job, runner, lease } = await computing(3);
  runner.say({ type: "ready", n: 1, resident: [] });
  const second = await runner.acceptLease();
  await replaceBindings(pool, { BUCKET: failing(env.BUCKET, "put") });
  await complete(runner, lease);
  await until(
    async () => (await withSql(pool, sql => sql.exec("SELECT max(settle_failures) AS n FROM executions").one())).n === 1,
    "a failure",
  );
  const ids = [lease.execution, second.execution, job.executions.find(({ id }) => id !== lease.execution && id !== second.execution)!.id];
  await evictDurableObject(dispatcherOf(pool), { webSockets: "close" });

  const states = await dispatcherOf(pool).describe({ v: 1, executions: ids, models: [] });
  expect(states.executions.map(({ state }) => state)).toEqual(["committing", "running", "queued"]);
  const alarm = await runInDurableObject(dispatcherOf(pool), (_, { storage }) => storage.getAlarm());
  expect(alarm).toBeLessThan(Date.now() + 2_000);
  const back = await TestRunner.open(pool, { instance: runner.instance, token: runner.token });
  back.hello({ leases: [lease, second].map(({ execution, epoch }) => ({ execution, epoch })) });
  expect((await back.next("welcome")).leases.map(({ verdict }) => verdict)).toEqual(["keep", "keep"]);
  expect(await back.next("committed")).toMatchObject({ execution: lease.execution });
  await complete(back, second);
  await back.next("committed");
  back.say({ type: "ready", n: 1, resident: [] });
  await complete(back, await back.acceptLease());
  await back.next("committed");
  expect(await jobStatus(job.job)).toEqual({ status: "succeeded", error: null });
});

it("grants compatible pictures as one batch, and retries its members alone when the runner is lost", async () => {
  const pool = newPool();
  const job = await acceptJob(pool, { pictures: 4, batchKey: "k" });
  await offer(pool, job);
  const lost = await TestRunner.connect(pool, { ready: 1, maxBatch: 4 });
  const { executions, grant } = await lost.acceptBatch();
  const claims = await verify("grant", grant, [publicJwk(settings(env).GRANT_KEY)]);
  const ids = job.executions.map(({ id }) => id).sort();
  expect(executions.map(({ execution }) => execution).sort()).toEqual(ids);
  expect(claims.executions.map(({ execution }) => execution).sort()).toEqual(ids);
  expect(new Set(claims.executions.map(({ capabilities }) => capabilities.result)).size).toBe(4);

  const [first] = executions;
  await complete(lost, first!);
  await lost.next("committed");
  lost.close();
  await fallDue(pool, "leases", "last_heartbeat");
  const good = await TestRunner.connect(pool, { ready: 1, maxBatch: 4 });
  for (let i = 0; i < 3; i++) {
    const batch = await good.acceptBatch();
    expect(batch.executions.map(({ epoch }) => epoch)).toEqual([2]);
    await complete(good, batch.executions[0]!);
    await good.next("committed");
    good.say({ type: "ready", n: 1, resident: [] });
  }
  expect(await jobStatus(job.job)).toEqual({ status: "succeeded", error: null });
  const attempts = await withSql(pool, sql => sql.exec<{ attempts: number }>("SELECT attempts FROM executions").toArray());
  expect(attempts.map(row => row.attempts)).toEqual([0, 0, 0, 0]);
});

it("lets an idle runner have the pictures of a generation as one batch, although they are offered one by one", async () => {
  const pool = newPool();
  const runner = await TestRunner.connect(pool, { ready: 1, maxBatch: 4 });
  const job = await acceptJob(pool, { pictures: 3, batchKey: "k" });
  await offer(pool, job);
  expect((await runner.acceptBatch()).executions.length).toBe(3);
  const alarm = await runInDurableObject(dispatcherOf(pool), (_, { storage }) => storage.getAlarm());
  expect(alarm).toBeLessThanOrEqual(Date.now() + settings(env).ACK_MS);
});

it("grants the rest of a batch of which one member cannot be granted", async () => {
  const pool = newPool();
  const [good, bad] = [await acceptJob(pool, { batchKey: "k" }), await acceptJob(pool, { batchKey: "k" })];
  for (const job of [good, bad]) await offer(pool, job);
  await env.DB.prepare("UPDATE executions SET params = json_set(params, '$.seed', 99) WHERE id = ?").bind(bad.executions[0]!.id).run();
  const runner = await TestRunner.connect(pool, { ready: 1, maxBatch: 4 });
  const { executions } = await runner.acceptBatch();
  expect(executions.map(({ execution }) => execution)).toEqual([good.executions[0]!.id]);
  await until(async () => (await jobStatus(bad.job)).status === "failed", "the end of the bad one");
  await complete(runner, executions[0]!);
  await runner.next("committed");
  expect(await jobStatus(good.job)).toEqual({ status: "succeeded", error: null });
});

it("lets a runner read the inputs of its execution: each exact object, no longer than the attempt", async () => {
  const sha256 = "5".repeat(64);
  const adapter = { hash: `sha256:${sha256}`, files: [{ path: "lora.safetensors", sha256, bytes: 7 }] };
  const file = { sha256, bytes: 7, key: `inputs/ten_1/${sha256}` };
  const pool = newPool();
  const job = await acceptJob(pool, { inputs: { files: [file], adapters: [{ ...adapter, files: [adapter.files[0]!] }] } });
  await offer(pool, job);
  const runner = await TestRunner.connect(pool, { ready: 1 });
  const { execution, epoch, grant } = await runner.acceptLease();
  const [claims] = (await verify("grant", grant, [publicJwk(settings(env).GRANT_KEY)])).executions;
  expect(claims).toMatchObject({ adapters: [adapter], inputs: [file] });
  const capability = await verify("capability", claims!.inputs[0]!.capability, [publicJwk(settings(env).CAPABILITY_KEY)]);
  expect(capability).toMatchObject({ method: "GET", key: file.key, max_bytes: 7, execution, epoch, instance: runner.instance, pool });
  expect(capability.exp).toBe(Math.ceil(claims!.attempt_deadline / 1000));
  expect(await withSql(pool, sql => sql.exec("SELECT adapters FROM executions").one())).toEqual({
    adapters: JSON.stringify([adapter.hash]),
  });
});

it("does not throw in its alarm and sets the next one, whatever fails", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  await offer(pool, job);
  await replaceBindings(pool, { DB: failing(env.DB, "prepare") });
  await withSql(pool, sql => sql.exec("UPDATE pool SET sweep_at = 0"));
  const alarm = await runInDurableObject(dispatcherOf(pool), async (dispatcher, { storage }) => {
    await storage.deleteAlarm();
    await dispatcher.alarm();
    return storage.getAlarm();
  });
  expect(alarm).toBeGreaterThan(Date.now());
});

it("refuses calls of a version that it doesn't know", async () => {
  const v = 2 as 1;
  const refused = await runInDurableObject(dispatcherOf(newPool()), async dispatcher => {
    const calls = [
      dispatcher.offer({ v, execution: "", tenant: "", params_sha256: "", request_id: "" }),
      dispatcher.abandon({ v, executions: [] }),
      dispatcher.describe({ v, executions: [], models: [] }),
      dispatcher.holds({ v, execution: "", epoch: 1, instance: "" }),
      dispatcher.watch({ v, deadline_at: 0 }),
      dispatcher.revoke({ v, token: "" }),
      dispatcher.sweep({ v }),
    ];
    return (await Promise.allSettled(calls)).map(call => call.status === "rejected" && String(call.reason));
  });
  expect(refused).toEqual(Array(7).fill("Error: dispatcher: RPC version expected 1, got 2"));
});
