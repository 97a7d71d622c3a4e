import { env } from "cloudflare:workers";
import fc from "fast-check";
import { ulid } from "ulid";
import { beforeEach, describe, expect, it } from "vitest";
import { wakeDispatchers } from "../../edge/dispatcher/wake.ts";
import { type Env, settings } from "../../edge/env.ts";
import { sweepOrphans } from "../../edge/orphans.ts";
import { stagingKey } from "../../shared/protocol.ts";
import { loraFile, pngFile, uploadAdapter, uploadPicture } from "./files.ts";
import { call, newKey } from "./support.ts";

const tenant = `ten_${ulid()}`;
const picturesKey = (execution: string) => `pictures/${tenant}/${execution}.png`;
/** When everything that was written until now is past its grace. */
const later = () => Date.now() + settings(env).ORPHAN_GRACE_MS + 60_000;
const run = (query: string, ...values: (string | number)[]) =>
  env.DB.prepare(query)
    .bind(...values)
    .run();
const put = (key: string) => env.BUCKET.put(key, "file");
async function keys(): Promise<string[]> {
  return (await env.BUCKET.list()).objects.map(({ key }) => key);
}
const insertExecution = (execution: string, state = "active") =>
  run(
    `INSERT INTO executions (id, tenant_id, pool, request_hash, params, params_sha256, model_hash, batch_key, inputs, exclusive, request_id, state, created_at)
     VALUES (?, ?, 'default', ?, '{}', '', '', '', '{}', 1, '', ?, 1)`,
    execution,
    tenant,
    execution,
    state,
  );
const insertPicture = (execution: string) =>
  run(
    `INSERT INTO pictures (id, tenant_id, execution_id, request_hash, model_hash, r2_key, sha256, bytes, width, height, media_type, created_at)
     SELECT ?1, ?2, ?3, '', '', ?4, '', 4, 1, 1, 'image/png', 1 WHERE EXISTS (SELECT 1 FROM executions WHERE id = ?3 AND state = 'succeeded')`,
    execution.replace("exe_", "pic_"),
    tenant,
    execution,
    picturesKey(execution),
  );
const setState = (execution: string, state: string) =>
  run("UPDATE executions SET state = ? WHERE id = ? AND state IN ('active', 'abandoned')", state, execution);

beforeEach(async () => {
  await env.BUCKET.delete(await keys());
  await env.DB.batch(
    ["executions", "pictures", "sweep_cursors", "idempotency_keys", "security_events", "dead_letters"].map(table =>
      env.DB.prepare(`DELETE FROM ${table}`),
    ),
  );
});

describe("sweepOrphans", () => {
  it.each([
    ["active", true],
    ["abandoned", true],
    ["succeeded", false],
    ["failed", false],
    ["canceled", false],
    [undefined, false],
  ])("of an execution that is %s keeps files without a row: %s", async (state, kept) => {
    const execution = `exe_${ulid()}`;
    if (state) await insertExecution(execution, state);
    await Promise.all([put(stagingKey(execution, 1)), put(stagingKey(execution, 2)), put(picturesKey(execution))]);
    expect(await sweepOrphans(env, later())).toEqual({ listed: 3, deleted: kept ? 0 : 3 });
    expect((await keys()).length).toBe(kept ? 3 : 0);
  });

  it("keeps a picture that has a row, and deletes another file of its execution", async () => {
    const execution = `exe_${ulid()}`;
    await insertExecution(execution, "succeeded");
    await insertPicture(execution);
    const other = picturesKey(execution).replace(".png", ".webp");
    await Promise.all([put(picturesKey(execution)), put(other), put(stagingKey(execution, 1))]);
    await sweepOrphans(env, later());
    expect(await keys()).toEqual([picturesKey(execution)]);
  });

  it("waits for the grace period, and leaves keys alone that it does not know", async () => {
    const execution = `exe_${ulid()}`;
    await put(stagingKey(execution, 1));
    expect(await sweepOrphans(env, Date.now() + settings(env).ORPHAN_GRACE_MS - 60_000)).toMatchObject({ deleted: 0 });
    await env.BUCKET.delete(stagingKey(execution, 1));
    const foreign = ["staging/readme", `staging/${execution}/x/result`, `pictures/${execution}.png`, "weights/pocket"];
    for (const key of foreign) await put(key);
    expect(await sweepOrphans(env, later())).toEqual({ listed: 3, deleted: 0 });
    expect((await keys()).sort()).toEqual([...foreign].sort());
  });

  it("looks at a bounded number of objects, goes on where it stopped, and begins anew after the last", async () => {
    const executions = Array.from({ length: 7 }, (_, i) => `exe_${ulid(i + 1)}`);
    for (const [i, execution] of executions.entries()) {
      await insertExecution(execution, i === 6 ? "failed" : "active");
      await put(picturesKey(execution));
    }
    const rounds = [];
    for (let i = 0; i < 4; i++) rounds.push(await sweepOrphans(env, later(), 3));
    expect(rounds).toEqual([
      { listed: 3, deleted: 0 },
      { listed: 3, deleted: 0 },
      { listed: 1, deleted: 1 },
      { listed: 3, deleted: 0 },
    ]);
  });

  it("sweeps pictures although staging cannot be listed", async () => {
    await put(picturesKey(`exe_${ulid()}`));
    const broken = bucketWith({
      list: (options: R2ListOptions) => (options.prefix === "staging/" ? Promise.reject(new Error("no")) : env.BUCKET.list(options)),
    });
    expect(await sweepOrphans(broken, later())).toEqual({ listed: 1, deleted: 1 });
  });

  it("is part of what the cron trigger does", async () => {
    await put(stagingKey(`exe_${ulid()}`, 1));
    await expect.poll(() => wakeDispatchers(undefined, { ...env, ORPHAN_GRACE_MS: "1" }).then(keys), { interval: 20 }).toEqual([]);
  });

  it("forgets rows past their time, and no others", async () => {
    const day = 24 * 3_600_000;
    const now = 1_000 * day;
    for (const age of [0.9, 1.1, 89, 91]) {
      const at = now - age * day;
      await run(
        "INSERT INTO idempotency_keys (tenant_id, key, path, body_sha256, ulid, created_at) VALUES ('t', ?, '', '', '', ?)",
        String(age),
        at,
      );
      await run("INSERT INTO security_events (id, kind, detail, created_at) VALUES (?, 'offer_refused', '{}', ?)", String(age), at);
      await run("INSERT INTO dead_letters (id, queue, body, attempts, created_at) VALUES (?, 'q', '', 1, ?)", String(age), at);
    }
    await sweepOrphans(env, now);
    const left = async (table: string, column: string) =>
      (await env.DB.prepare(`SELECT ${column} AS id FROM ${table} ORDER BY created_at DESC`).all<{ id: string }>()).results.map(
        ({ id }) => id,
      );
    expect(await left("idempotency_keys", "key")).toEqual(["0.9"]);
    expect(await left("security_events", "id")).toEqual(["0.9", "1.1", "89"]);
    expect(await left("dead_letters", "id")).toEqual(["0.9", "1.1", "89"]);
  });

  it("deletes no file that is or will be referred to, whatever happens meanwhile, and in the end every other one", async () => {
    const step = fc.record({ what: fc.constantFrom("upload", "copy", "commit", "cancel", "fail", "delete", "sweep"), which: fc.nat(3) });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 40 }), async steps => {
        const executions = Array.from({ length: 4 }, () => `exe_${ulid()}`);
        for (const execution of executions) await insertExecution(execution);
        const queue = [...steps];
        const copied = new Set<string>();
        const act = async ({ what, which }: { what: string; which: number }) => {
          const execution = executions[which]!;
          const live =
            (await env.DB.prepare("SELECT 1 FROM executions WHERE id = ? AND state IN ('active', 'abandoned')").bind(execution).first()) !==
            null;
          if (what === "upload") await put(stagingKey(execution, 1));
          if (what === "copy" && live) {
            copied.add(execution);
            await put(picturesKey(execution));
          }
          if (what === "commit" && live && copied.has(execution)) {
            await setState(execution, "succeeded");
            await insertPicture(execution);
          }
          // The dispatcher decides on one outcome: what it copies already, it commits.
          if ((what === "cancel" || what === "fail") && live && !copied.has(execution))
            await setState(execution, what === "fail" ? "failed" : "abandoned");
          if (what === "delete") await run("DELETE FROM pictures WHERE execution_id = ?", execution);
        };
        // Between any two things that the sweep does, something else may happen.
        const meanwhile = async () => {
          while (queue.length > 0 && queue[0]!.what !== "sweep") await act(queue.shift()!);
          queue.shift();
        };
        const busy = bucketWith({
          list: async (options: R2ListOptions) => {
            const page = await env.BUCKET.list(options);
            await meanwhile();
            return page;
          },
          delete: async (gone: string[]) => {
            await meanwhile();
            await env.BUCKET.delete(gone);
          },
        });
        while (queue.length > 0) {
          await meanwhile();
          await sweepOrphans(busy, later(), 2);
          const present = new Set(await keys());
          const { results } = await env.DB.prepare("SELECT r2_key FROM pictures").all<{ r2_key: string }>();
          expect(results.filter(({ r2_key }) => !present.has(r2_key))).toEqual([]);
          const { results: live } = await env.DB.prepare("SELECT id FROM executions WHERE state IN ('active', 'abandoned')").all<{
            id: string;
          }>();
          expect(live.filter(({ id }) => copied.has(id) && !present.has(picturesKey(id)))).toEqual([]);
        }
        for (const execution of executions) await setState(execution, "failed");
        for (let round = 0; round < 8; round++) await sweepOrphans(env, later(), 2);
        const { results } = await env.DB.prepare("SELECT r2_key FROM pictures ORDER BY r2_key").all<{ r2_key: string }>();
        expect(await keys()).toEqual(results.map(({ r2_key }) => r2_key));
        await env.DB.batch(["executions", "pictures", "sweep_cursors"].map(table => env.DB.prepare(`DELETE FROM ${table}`)));
        await env.BUCKET.delete(await keys());
      }),
      { numRuns: 25 },
    );
  });
});

describe("files that clients hand in", () => {
  it("go when their rows are past their time: inputs that nothing used, adapters that never became ready", async () => {
    const now = Date.now();
    const sha = (digit: string) => digit.repeat(64);
    const [unused, used, stranger] = [sha("1"), sha("2"), sha("3")];
    const upload = (sha256: string, expires: number) =>
      run(
        "INSERT INTO uploads (id, tenant_id, sha256, bytes, media_type, ready, created_at, expires_at) VALUES (?, ?, ?, 4, 'image/png', 1, 1, ?)",
        `upl_${ulid()}`,
        tenant,
        sha256,
        expires,
      );
    await upload(unused, now - 1);
    await upload(used, now + 24 * 3600_000);
    const adapter = async (status: string, created: number, sha256: string) => {
      const id = `adp_${ulid()}`;
      await run(
        "INSERT INTO adapters (id, tenant_id, name, version, hash, visibility, status, created_at) VALUES (?, ?, ?, 1, ?, 'private', ?, ?)",
        ...[id, tenant, id, sha256, status, created],
      );
      await run("INSERT INTO adapter_files (adapter_id, path, tenant_id, sha256, bytes) VALUES (?, 'a', ?, ?, 4)", id, tenant, sha256);
    };
    const old = now - 30 * 24 * 3600_000;
    await adapter("ready", old, sha("4"));
    await adapter("uploading", old, sha("5"));
    await adapter("uploading", now, sha("6"));
    await adapter("refused", old, sha("7"));
    for (const sha256 of [unused, used, stranger]) await put(`inputs/${tenant}/${sha256}`);
    for (const digit of ["4", "5", "6", "7", "8"]) await put(`adapters/${tenant}/${sha(digit)}`);
    await put("inputs/somewhere else");
    await sweepOrphans(env, now);
    // Young objects may be about to get their rows.
    expect((await keys()).length).toBe(9);
    await sweepOrphans(env, later());
    expect(await keys()).toEqual([
      `adapters/${tenant}/${sha("4")}`,
      `adapters/${tenant}/${sha("6")}`,
      "inputs/somewhere else",
      `inputs/${tenant}/${used}`,
    ]);
  });
});

describe("a file that is handed in again at the moment of its deletion", () => {
  /** The bucket, in which whoever comes right before a deletion finds everything still. */
  const deletingAfter = (meanwhile: (deleted: string[]) => Promise<unknown>) =>
    bucketWith({
      delete: async (deleted: string[]) => {
        await meanwhile(deleted);
        return env.BUCKET.delete(deleted);
      },
    });

  it("is asked for, as an upload and as an adapter, where the sweep took it", async () => {
    const { key, tenant_id } = await newKey();
    const [picture, lora] = [pngFile(), loraFile(96, 2, 900)];
    const upload = await uploadPicture(key, picture);
    const adapter = await uploadAdapter(key, "swept", lora);
    await env.DB.batch(
      ["uploads", "adapter_files", "adapters"].map(table => env.DB.prepare(`DELETE FROM ${table} WHERE tenant_id = ?`).bind(tenant_id)),
    );
    // As clients that found the files there.
    const swept = deletingAfter(async ([object]) => {
      if (object!.startsWith("inputs/"))
        return run(
          "INSERT INTO uploads (id, tenant_id, sha256, bytes, media_type, ready, created_at, expires_at) VALUES (?, ?, ?, ?, 'image/png', 1, 1, ?)",
          ...[upload.id, tenant_id, upload.sha256, picture.length, later()],
        );
      await run(
        "INSERT INTO adapters (id, tenant_id, name, version, hash, visibility, status, created_at) VALUES (?, ?, 'swept', 1, ?, 'private', 'ready', 1)",
        ...[adapter.id, tenant_id, adapter.hash],
      );
      return run(
        "INSERT INTO adapter_files (adapter_id, path, tenant_id, sha256, bytes) VALUES (?, 'swept.safetensors', ?, ?, ?)",
        ...[adapter.id, tenant_id, adapter.files[0]!.sha256, lora.length],
      );
    });
    await sweepOrphans(swept, later());
    expect(await (await call(`/v1/uploads/${upload.id}`, { key })).json()).toMatchObject({ status: "waiting" });
    expect(await (await call(`/v1/adapters/${adapter.id}`, { key })).json()).toMatchObject({ status: "uploading" });
    expect(await uploadPicture(key, picture)).toMatchObject({ id: upload.id, status: "ready" });
    expect(await uploadAdapter(key, "swept", lora)).toMatchObject({ id: adapter.id, status: "ready" });
  });

  it("is asked for where another adapter's deletion took it", async () => {
    const { key } = await newKey();
    const lora = loraFile(96, 2, 901);
    const adapter = await uploadAdapter(key, "deleted", lora);
    const described = { name: "again", files: adapter.files.map(({ path, sha256, bytes }) => ({ path, sha256, bytes })) };
    const opened: { id: string; status: string }[] = [];
    const meanwhile = deletingAfter(async () => {
      opened.push(await (await call("/v1/adapters", { method: "POST", key, json: described })).json());
    });
    expect((await call(`/v1/adapters/${adapter.id}`, { method: "DELETE", key, env: meanwhile })).status).toBe(204);
    expect(opened).toMatchObject([{ status: "ready" }]);
    expect(await (await call(`/v1/adapters/${opened[0]!.id}`, { key })).json()).toMatchObject({ status: "uploading" });
  });
});

function bucketWith(methods: Record<string, unknown>): Env {
  const bucket = new Proxy(env.BUCKET, {
    get: (target, name) => {
      const own = methods[String(name)] ?? Reflect.get(target, name);
      return typeof own === "function" ? own.bind(target) : own;
    },
  });
  return { ...env, BUCKET: bucket };
}
