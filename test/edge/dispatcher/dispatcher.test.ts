import { env } from "cloudflare:workers";
import { expect, it } from "vitest";
import { settings } from "../../../edge/env.ts";
import { stagingKey } from "../../../shared/protocol.ts";
import { publicJwk, verify } from "../../../shared/signing.ts";
import { acceptJob, dispatcherOf, executionState, jobStatus, MODEL_HASH, newPool, offer, row, stage, TestRunner } from "./support.ts";

it("takes an offer to a stored picture: lease, grant, upload, commit", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  const [{ id, params, params_sha256 }] = job.executions as [(typeof job.executions)[0]];
  expect(await offer(pool, job)).toEqual(["queued"]);

  const runner = await TestRunner.connect(pool, { ready: 1 });
  const lease = await runner.acceptLease();
  expect(lease).toMatchObject({ execution: id, epoch: 1, params });
  const claims = await verify("grant", lease.grant, [publicJwk(settings(env).GRANT_KEY)]);
  expect(claims).toMatchObject({
    instance: runner.instance,
    executions: [{ execution: id, epoch: 1, params_sha256, request_id: "req_test" }],
  });
  const capability = await verify("capability", claims.executions[0]!.capabilities.result, [publicJwk(settings(env).CAPABILITY_KEY)]);
  expect(capability).toMatchObject({ method: "PUT", key: stagingKey(id, 1), execution: id, epoch: 1, pool, max_bytes: 33554432 });
  expect(await dispatcherOf(pool).holds({ v: 1, execution: id, epoch: 1, instance: runner.instance })).toBe(true);

  const result = await stage(lease);
  runner.say({ type: "complete", execution: id, epoch: 1, result });
  expect(await runner.next("committed")).toMatchObject({ execution: id, epoch: 1 });

  expect(await jobStatus(job.job)).toEqual({ status: "succeeded", error: null });
  expect(await executionState(id)).toBe("succeeded");
  const picture = await row<{ r2_key: string; sha256: string }>("SELECT * FROM pictures WHERE execution_id = ?", id);
  expect(picture).toMatchObject({ tenant_id: job.tenant, sha256: result.sha256, bytes: result.bytes, width: 128, media_type: "image/png" });
  expect((await env.BUCKET.head(picture!.r2_key))?.size).toBe(result.bytes);
  expect(await env.BUCKET.head(stagingKey(id, 1))).toBeNull();
  expect(await dispatcherOf(pool).describe({ v: 1, executions: [id], models: [`sha256:${"b".repeat(64)}`, MODEL_HASH] })).toEqual({
    executions: [{ execution: id, state: "done", position: null, no_runner: false, epoch: 1 }],
    served: [MODEL_HASH],
  });
});
