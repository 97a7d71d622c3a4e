import { env } from "cloudflare:workers";
import { expect, it } from "vitest";
import { settings } from "../../edge/env.ts";
import { sweepOrphans } from "../../edge/orphans.ts";
import { settle } from "../../edge/settle.ts";
import { sameUlid } from "../../shared/names.ts";
import { stagingKey } from "../../shared/protocol.ts";
import {
  type AcceptedJob,
  acceptJob,
  executionState,
  failing,
  jobStatus,
  MODEL_HASH,
  newPool,
  pngBytes,
  row,
  stage,
} from "./dispatcher/support.ts";

async function pictureStates({ job }: AcceptedJob): Promise<string[]> {
  const { results } = await env.DB.prepare("SELECT state FROM job_pictures WHERE job_id = ? ORDER BY idx")
    .bind(job)
    .all<{ state: string }>();
  return results.map(({ state }) => state);
}

/** A second job that waits for the same executions. */
async function join(pool: string, accepted: AcceptedJob): Promise<AcceptedJob> {
  const other = await acceptJob(pool, { tenant: accepted.tenant, pictures: accepted.executions.length });
  await env.DB.batch(
    accepted.executions.map(({ id }, i) =>
      env.DB.prepare("UPDATE job_pictures SET execution_id = ? WHERE job_id = ? AND idx = ?").bind(id, other.job, i),
    ),
  );
  return other;
}

async function abandon(execution: string, job: string): Promise<void> {
  await env.DB.batch([
    env.DB.prepare("UPDATE jobs SET status = 'canceled' WHERE id = ?").bind(job),
    env.DB.prepare("UPDATE job_pictures SET state = 'canceled' WHERE job_id = ?").bind(job),
    env.DB.prepare("UPDATE executions SET state = 'abandoned' WHERE id = ?").bind(execution),
  ]);
}

async function commit(execution: string, epoch = 1, bindings = env as Parameters<typeof settle>[0]) {
  const result = await stage({ execution, epoch });
  return settle(bindings, { execution, epoch, outcome: "succeeded", result });
}

function withModel(): Promise<unknown> {
  return env.DB.prepare("INSERT INTO models (name, hash, pool, manifest, created_at) VALUES ('m', ?, 'p', '{}', 0) ON CONFLICT DO NOTHING")
    .bind(MODEL_HASH)
    .run();
}

it("commits a picture for every job that waits, and a job when its last picture is there", async () => {
  await withModel();
  const pool = newPool();
  const job = await acceptJob(pool, { pictures: 2 });
  const joined = await join(pool, job);
  const [first, second] = job.executions.map(({ id }) => id) as [string, string];
  expect(await commit(first)).toEqual({ verdict: "settled", abandoned: [] });
  expect([await jobStatus(job.job), await jobStatus(joined.job)].map(({ status }) => status)).toEqual(["active", "active"]);
  await commit(second);
  for (const each of [job, joined]) {
    expect((await jobStatus(each.job)).status).toBe("succeeded");
    expect(await pictureStates(each)).toEqual(["succeeded", "succeeded"]);
  }
  const picture = sameUlid(first, "picture");
  const key = `pictures/${job.tenant}/${first}.png`;
  expect(await row("SELECT r2_key, execution_id FROM pictures WHERE id = ?", picture)).toEqual({ r2_key: key, execution_id: first });
  expect(await (await env.BUCKET.get(key))!.bytes()).toEqual(pngBytes(`${first} 1`));
  expect((await env.BUCKET.head(key))?.httpMetadata?.contentType).toBe("image/png");
  const cached = "SELECT picture_id FROM cache_entries WHERE tenant_id = ? AND request_hash = ?";
  expect(await row(cached, job.tenant, job.executions[0]!.params_sha256)).toEqual({ picture_id: picture });
});

it("tells the jobs' events", async () => {
  const job = await acceptJob(newPool());
  await commit(job.executions[0]!.id);
  const stream = await env.JOB_EVENTS.getByName(job.job).fetch(`https://events/${job.job}`);
  const text = await stream.text();
  expect(text).toMatch(/"type":"picture"[\s\S]*"type":"succeeded"/);
});

it("repeats nothing when it runs again: one picture, one end", async () => {
  const job = await acceptJob(newPool());
  const { id } = job.executions[0]!;
  await commit(id);
  const before = await row("SELECT finished_at, epoch FROM executions WHERE id = ?", id);
  expect(await commit(id, 2)).toEqual({ verdict: "settled", abandoned: [] });
  expect(await settle(env, { execution: id, epoch: 3, outcome: "failed", error: { code: "internal", message: "" } })).toEqual({
    verdict: "settled",
    abandoned: [],
  });
  expect(await row("SELECT finished_at, epoch FROM executions WHERE id = ?", id)).toEqual(before);
  expect(await jobStatus(job.job)).toEqual({ status: "succeeded", error: null });
  expect(await row("SELECT COUNT(*) AS n FROM pictures WHERE execution_id = ?", id)).toEqual({ n: 1 });
});

it("lets the commit of an abandoned execution win: no job has it, the cache does", async () => {
  await withModel();
  const job = await acceptJob(newPool());
  const { id, params_sha256 } = job.executions[0]!;
  await abandon(id, job.job);
  await commit(id);
  expect(await executionState(id)).toBe("succeeded");
  expect((await jobStatus(job.job)).status).toBe("canceled");
  expect(await pictureStates(job)).toEqual(["canceled"]);
  expect(await row("SELECT COUNT(*) AS n FROM cache_entries WHERE request_hash = ?", params_sha256)).toEqual({ n: 1 });
});

it("gives up what was deleted while it was committed: no picture, no cache entry, and the file is an orphan", async () => {
  await withModel();
  const job = await acceptJob(newPool());
  const { id, params_sha256 } = job.executions[0]!;
  await abandon(id, job.job);
  const result = await stage({ execution: id, epoch: 1 });
  const deleting = {
    ...env,
    BUCKET: new Proxy(env.BUCKET, {
      get: (bucket, name) => {
        if (name !== "put") return Reflect.get(bucket, name).bind(bucket);
        // The generation is deleted after the commit has begun, before D1 hears of it.
        return async (...put: Parameters<R2Bucket["put"]>) => {
          await env.DB.prepare("DELETE FROM jobs WHERE id = ?").bind(job.job).run();
          return bucket.put(...put);
        };
      },
    }),
  };
  expect(await settle(deleting, { execution: id, epoch: 1, outcome: "succeeded", result })).toEqual({ verdict: "settled", abandoned: [] });
  expect(await executionState(id)).toBe("succeeded");
  expect(await row("SELECT COUNT(*) AS n FROM pictures WHERE execution_id = ?", id)).toEqual({ n: 0 });
  expect(await row("SELECT COUNT(*) AS n FROM cache_entries WHERE request_hash = ?", params_sha256)).toEqual({ n: 0 });
  await sweepOrphans(env, Date.now() + 2 * settings(env).ORPHAN_GRACE_MS);
  expect(await env.BUCKET.head(`pictures/${job.tenant}/${id}.png`)).toBeNull();
});

it("keeps a model that was deleted meanwhile out of the cache", async () => {
  const job = await acceptJob(newPool(), { modelHash: `sha256:${"d".repeat(64)}` });
  const { id, params_sha256 } = job.executions[0]!;
  await commit(id);
  expect((await jobStatus(job.job)).status).toBe("succeeded");
  expect(await row("SELECT COUNT(*) AS n FROM cache_entries WHERE request_hash = ?", params_sha256)).toEqual({ n: 0 });
});

it("refuses a file that is not what was asked for or announced, and takes nothing of it", async () => {
  const job = await acceptJob(newPool());
  const execution = job.executions[0]!.id;
  const good = await stage({ execution, epoch: 1 });
  const refusal = async (result: typeof good, epoch = 1) => {
    const settlement = await settle(env, { execution, epoch, outcome: "succeeded", result });
    return settlement.verdict === "refused" ? settlement.reason : settlement.verdict;
  };
  expect(await refusal({ ...good, width: 64 })).toBe("expected a picture of 128 x 128 pixels, got 64 x 128");
  expect(await refusal({ ...good, bytes: 7 })).toBe(`expected a staged file of 7 bytes, got ${good.bytes}`);
  expect(await refusal(good, 2)).toBe("there is no staged file");
  await env.BUCKET.put(stagingKey(execution, 3), pngBytes("x"), { httpMetadata: { contentType: "image/png" } });
  expect(await refusal(good, 3)).toBe(`expected a staged file with SHA-256 ${good.sha256}, got none`);
  await env.BUCKET.put(stagingKey(execution, 4), pngBytes(`${execution} 1`), {
    sha256: good.sha256,
    httpMetadata: { contentType: "image/webp" },
  });
  expect(await refusal(good, 4)).toBe("expected a staged file of type image/png, got image/webp");
  expect(await executionState(execution)).toBe("active");
  expect(await pictureStates(job)).toEqual(["pending"]);
  expect(await refusal(good)).toBe("settled");
});

it("fails every job that waits, with the error, and frees what only they waited for", async () => {
  const pool = newPool();
  const job = await acceptJob(pool, { pictures: 3 });
  const [failed, only, shared] = job.executions.map(({ id }) => id) as [string, string, string];
  const other = await acceptJob(pool, { tenant: job.tenant });
  await env.DB.prepare("UPDATE job_pictures SET execution_id = ? WHERE job_id = ?").bind(shared, other.job).run();
  const error = { code: "runner_failed", message: "It cannot be drawn." } as const;
  const settlement = await settle(env, { execution: failed, epoch: 1, outcome: "failed", error });
  expect(settlement).toEqual({ verdict: "settled", abandoned: [only] });
  expect(await jobStatus(job.job)).toEqual({ status: "failed", error });
  expect(await pictureStates(job)).toEqual(["failed", "canceled", "canceled"]);
  expect((await jobStatus(other.job)).status).toBe("active");
  expect([await executionState(failed), await executionState(only), await executionState(shared)]).toEqual([
    "failed",
    "abandoned",
    "active",
  ]);
});

it("cancels what is abandoned, and only that", async () => {
  const [live, dead] = [await acceptJob(newPool()), await acceptJob(newPool())];
  await abandon(dead.executions[0]!.id, dead.job);
  const cancel = ({ executions }: AcceptedJob) => settle(env, { execution: executions[0]!.id, epoch: 0, outcome: "canceled" });
  expect(await cancel(live)).toEqual({ verdict: "settled", abandoned: [] });
  expect(await cancel(dead)).toEqual({ verdict: "settled", abandoned: [], request_id: "req_test" });
  expect([await executionState(live.executions[0]!.id), await executionState(dead.executions[0]!.id)]).toEqual(["active", "canceled"]);
});

it("throws where D1 or R2 cannot be reached, and is right when it runs again", async () => {
  const job = await acceptJob(newPool());
  const { id } = job.executions[0]!;
  await expect(commit(id, 1, { ...env, BUCKET: failing(env.BUCKET, "get") })).rejects.toThrow("get is out of order");
  await expect(commit(id, 1, { ...env, DB: failing(env.DB, "batch") })).rejects.toThrow("batch is out of order");
  expect((await jobStatus(job.job)).status).toBe("active");
  expect(
    await commit(id, 1, { ...env, BUCKET: failing(env.BUCKET, "delete"), JOB_EVENTS: failing(env.JOB_EVENTS, "getByName") }),
  ).toMatchObject({ verdict: "settled" });
  expect((await jobStatus(job.job)).status).toBe("succeeded");
});
