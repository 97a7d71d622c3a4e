import { createScheduledController, runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { expect, it } from "vitest";
import { wakeDispatchers } from "../../../edge/dispatcher/wake.ts";
import {
  acceptJob,
  dispatcherOf,
  executionState,
  jobStatus,
  MODEL_HASH,
  newPool,
  offer,
  row,
  TestRunner,
  until,
  withSql,
} from "./support.ts";

const minutesAgo = (n: number) => Date.now() - n * 60_000;

async function stateIn(pool: string, execution: string): Promise<string> {
  return (await dispatcherOf(pool).describe({ v: 1, executions: [execution], models: [] })).executions[0]!.state;
}

function alarmOf(pool: string): Promise<number | null> {
  return runInDurableObject(dispatcherOf(pool), (_, { storage }) => storage.getAlarm());
}

function sweepAt(pool: string): Promise<number | null> {
  return withSql(pool, sql => sql.exec<{ sweep_at: number | null }>("SELECT sweep_at FROM pool").one().sweep_at);
}

it("offers live executions again that never arrived, through the queue", async () => {
  const pool = newPool();
  const lost = await acceptJob(pool, { createdAt: minutesAgo(1), pictures: 3 });
  const young = await acceptJob(pool);
  await dispatcherOf(pool).sweep({ v: 1 });
  await until(async () => (await dispatcherOf(pool).sweep({ v: 1 })).queued === 3, "the offers");
  for (const { id } of lost.executions) expect(await stateIn(pool, id)).toBe("queued");
  expect(await stateIn(pool, young.executions[0]!.id)).toBe("unknown");
  expect(await row("SELECT COUNT(*) AS n FROM security_events WHERE detail LIKE ?", `%${lost.executions[0]!.id}%`)).toEqual({ n: 0 });
});

it("offers more than a page of lost executions, page by page", async () => {
  const pool = newPool();
  for (let i = 0; i < 3; i++) await acceptJob(pool, { createdAt: minutesAgo(3 - i), pictures: 50 });
  await dispatcherOf(pool).sweep({ v: 1 });
  const next = await sweepAt(pool);
  expect(next).toBeLessThanOrEqual(Date.now() + 1000);
  await dispatcherOf(pool).sweep({ v: 1 });
  await until(
    async () => (await withSql(pool, sql => sql.exec("SELECT COUNT(*) AS n FROM executions").one())).n === 150,
    "the offers",
    15_000,
  );
});

it("settles what was abandoned unbeknown to the object, and what it knows of", async () => {
  const pool = newPool();
  const [unknown, queued] = [await acceptJob(pool), await acceptJob(pool)];
  await offer(pool, queued);
  const ids = [unknown, queued].map(({ executions }) => executions[0]!.id);
  await env.DB.batch(ids.map(id => env.DB.prepare("UPDATE executions SET state = 'abandoned' WHERE id = ?").bind(id)));
  await dispatcherOf(pool).sweep({ v: 1 });
  for (const id of ids) await until(async () => (await executionState(id)) === "canceled", "the end in D1");
  expect(await offer(pool, unknown)).toEqual(["tombstoned"]);
});

it("abandons a live execution that no job waits for", async () => {
  const pool = newPool();
  const { job, executions } = await acceptJob(pool, { createdAt: minutesAgo(1) });
  await env.DB.prepare("DELETE FROM jobs WHERE id = ?").bind(job).run();
  await env.DB.prepare("DELETE FROM job_pictures WHERE job_id = ?").bind(job).run();
  await dispatcherOf(pool).sweep({ v: 1 });
  await until(async () => (await executionState(executions[0]!.id)) === "canceled", "the end in D1");
});

it("ends a job at its deadline because no runner was there", async () => {
  const pool = newPool();
  const deadlineAt = Date.now() + 300;
  const job = await acceptJob(pool, { deadlineAt });
  await offer(pool, job);
  await TestRunner.connect(pool, { ready: 1, models: [`sha256:${"b".repeat(64)}`] });
  await dispatcherOf(pool).watch({ v: 1, deadline_at: deadlineAt });
  expect(await alarmOf(pool)).toBe(deadlineAt);
  await until(async () => (await jobStatus(job.job)).status === "failed", "the end of the job");
  expect((await jobStatus(job.job)).error?.code).toBe("no_runner");
  await until(async () => (await executionState(job.executions[0]!.id)) === "canceled", "the end of the execution");
  expect(await withSql(pool, sql => sql.exec("SELECT state, outcome FROM executions").one())).toEqual({
    state: "done",
    outcome: "canceled",
  });
});

it("ends a job at its deadline because no runner had its refiner besides its model, and tells so before", async () => {
  const pool = newPool();
  const refinerHash = `sha256:${"b".repeat(64)}`;
  const job = await acceptJob(pool, { deadlineAt: Date.now() + 300, refinerHash });
  await offer(pool, job);
  await TestRunner.connect(pool, { ready: 1 });
  await TestRunner.connect(pool, { ready: 1, models: [refinerHash] });
  const { executions } = await dispatcherOf(pool).describe({ v: 1, executions: [job.executions[0]!.id], models: [] });
  expect(executions).toMatchObject([{ state: "queued", no_runner: true }]);
  await dispatcherOf(pool).watch({ v: 1, deadline_at: Date.now() + 300 });
  await until(async () => (await jobStatus(job.job)).status === "failed", "the end of the job");
  expect((await jobStatus(job.job)).error?.code).toBe("no_runner");
});

it("grants what needs a refiner to the runner that has both", async () => {
  const pool = newPool();
  const refinerHash = `sha256:${"b".repeat(64)}`;
  await TestRunner.connect(pool, { ready: 1 });
  const both = await TestRunner.connect(pool, { ready: 1, models: [MODEL_HASH, refinerHash] });
  const job = await acceptJob(pool, { refinerHash });
  await offer(pool, job);
  expect((await both.acceptLease()).execution).toBe(job.executions[0]!.id);
});

it("ends a job at its deadline although a runner computes it, and stops the runner", async () => {
  const pool = newPool();
  const deadlineAt = Date.now() + 500;
  const job = await acceptJob(pool, { deadlineAt });
  await offer(pool, job);
  await dispatcherOf(pool).watch({ v: 1, deadline_at: deadlineAt });
  const runner = await TestRunner.connect(pool, { ready: 1 });
  const { execution, epoch } = await runner.acceptLease();
  expect(await runner.next("cancel")).toMatchObject({ leases: [{ execution, epoch }] });
  expect(await jobStatus(job.job)).toEqual({
    status: "failed",
    error: { code: "deadline_exceeded", message: "The job did not end before its deadline." },
  });
});

it("tells a deadline that passed while the only runner was busy from one without runner", async () => {
  const pool = newPool();
  await TestRunner.connect(pool);
  const job = await acceptJob(pool, { createdAt: minutesAgo(2), deadlineAt: minutesAgo(1) });
  await dispatcherOf(pool).sweep({ v: 1 });
  expect((await jobStatus(job.job)).error?.code).toBe("deadline_exceeded");
});

it("sweeps while something lives, and sleeps when nothing does", async () => {
  const pool = newPool();
  await dispatcherOf(pool).sweep({ v: 1 });
  expect(await sweepAt(pool)).toBeNull();
  const job = await acceptJob(pool, { deadlineAt: Date.now() + 3_600_000 });
  await dispatcherOf(pool).watch({ v: 1, deadline_at: Date.now() + 3_600_000 });
  await dispatcherOf(pool).sweep({ v: 1 });
  const next = (await sweepAt(pool))! - Date.now();
  expect(next).toBeGreaterThan(8_000);
  expect(next).toBeLessThanOrEqual(10_000);
  await env.DB.batch([
    env.DB.prepare("UPDATE jobs SET status = 'canceled' WHERE id = ?").bind(job.job),
    env.DB.prepare("UPDATE executions SET state = 'canceled' WHERE id = ?").bind(job.executions[0]!.id),
  ]);
  await dispatcherOf(pool).sweep({ v: 1 });
  expect(await sweepAt(pool)).toBeNull();
});

it("wakes the dispatcher of every pool that has models or something live, also beside one that fails", async () => {
  const pools = [newPool(), newPool(), newPool()];
  const jobs = await Promise.all(pools.map(pool => acceptJob(pool, { createdAt: minutesAgo(1) })));
  await env.DB.batch(
    pools
      .slice(1)
      .map(pool =>
        env.DB.prepare("INSERT INTO models (name, hash, pool, manifest, created_at) VALUES (?, ?, ?, '{}', 0)").bind(
          pool,
          MODEL_HASH,
          pool,
        ),
      ),
  );
  const failed = pools.pop()!;
  const objects = { getByName: (pool: string) => (pool === failed ? {} : dispatcherOf(pool)) } as unknown as typeof env.DISPATCHER;
  await wakeDispatchers(createScheduledController(), { ...env, DISPATCHER: objects });
  for (const [i, pool] of pools.entries()) {
    await until(async () => (await stateIn(pool, jobs[i]!.executions[0]!.id)) === "queued", "the offer");
  }
});
