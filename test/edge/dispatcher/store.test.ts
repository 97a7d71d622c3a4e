import { expect, it } from "vitest";
import { greet, isRevoked, mayGreet, ready, restarted, revoke } from "../../../edge/dispatcher/instances.ts";
import { choose, nextDue } from "../../../edge/dispatcher/policy.ts";
import * as store from "../../../edge/dispatcher/store.ts";
import { migrate } from "../../../edge/dispatcher/tables.ts";
import { settleDelay, type Times, TOMBSTONE_MS } from "../../../edge/dispatcher/times.ts";
import { newPool, withSql } from "./support.ts";

/** The invariants one by one, as examples. Times in milliseconds from 0. */

const times: Times = { lease: 20_000, ack: 5_000, stall: 30_000, attempt: 90_000, maxAttempts: 3, trainingShare: 0.5 };
const result = { sha256: "0".repeat(64), bytes: 1, width: 1, height: 1 };
const error = { code: "runner_failed", message: "it failed" } as const;

function queue(sql: SqlStorage, execution = "e"): string {
  return store.enqueue(sql, {
    execution,
    tenant: "t",
    params_sha256: "",
    model_hash: "m",
    refiner_hash: "",
    engine_version: 1,
    request_id: "req",
    batch_key: "",
    adapters: [],
    kind: "picture",
    deadline_at: 0,
  });
}

function connect(sql: SqlStorage, instance: string, now = 0, leases: { execution: string; epoch: number }[] = []) {
  return greet(sql, { instance, engine_version: 1, provider: "cpu", models: ["m"], max_batch: 1, leases }, `token-${instance}`, now, times);
}

function grant(sql: SqlStorage, execution: string, instance: string, now: number) {
  return store.lease(sql, { executions: [execution], instance, overtaken: null }, now, times)[0]!;
}

/** Queues `e`, connects `r` and lets it accept the lease. */
function computing(sql: SqlStorage, now = 0) {
  queue(sql);
  connect(sql, "r", now);
  const lease = grant(sql, "e", "r", now);
  store.accept(sql, lease, "r", now);
  return lease;
}

function stateOf(sql: SqlStorage, execution = "e") {
  const row = store.executionRow(sql, execution);
  return row && { state: row.state, epoch: row.epoch, attempts: row.attempts, outcome: row.outcome };
}

function heartbeatAt(sql: SqlStorage, now: number, counter: number): void {
  store.heartbeat(sql, "r", [{ execution: "e", epoch: 1, counter }], now);
}

it("takes a redelivered offer for known, and for a tombstone after the end", async () => {
  const answers = await withSql(newPool(), sql => {
    const first = queue(sql);
    const again = queue(sql);
    store.abandon(sql, "e", 0);
    const whileSettling = queue(sql);
    store.settled(sql, "e", 0);
    return [first, again, whileSettling, queue(sql), stateOf(sql)];
  });
  expect(answers).toEqual(["queued", "known", "tombstoned", "tombstoned", { state: "done", epoch: 0, attempts: 0, outcome: "canceled" }]);
});

it("keeps a cancel that came before the offer", async () => {
  const answer = await withSql(newPool(), sql => {
    store.abandon(sql, "e", 0);
    return queue(sql);
  });
  expect(answer).toBe("tombstoned");
});

it("withdraws a grant that is not accepted in time: no attempt is counted, the epoch rises, the late accept is refused", async () => {
  const seen = await withSql(newPool(), sql => {
    queue(sql);
    connect(sql, "r");
    ready(sql, "r", 1);
    const lease = grant(sql, "e", "r", 0);
    const early = store.expire(sql, 4_999, times);
    const ended = store.expire(sql, 5_000, times).map(({ reason }) => reason);
    const late = store.accept(sql, lease, "r", 5_001);
    return { early, ended, late, state: stateOf(sql), next: grant(sql, "e", "r", 10_000).epoch };
  });
  expect(seen).toEqual({
    early: [],
    ended: ["not_acknowledged"],
    late: "over",
    state: { state: "queued", epoch: 1, attempts: 0, outcome: null },
    next: 2,
  });
});

it("loses a lease without heartbeat, and counts the attempt", async () => {
  const seen = await withSql(newPool(), sql => {
    computing(sql);
    heartbeatAt(sql, 10_000, 1);
    const early = store.expire(sql, 29_999, times);
    return { early, ended: store.expire(sql, 30_000, times), state: stateOf(sql) };
  });
  expect(seen).toEqual({
    early: [],
    ended: [{ execution: "e", epoch: 1, instance: "r", request_id: "req", reason: "no_heartbeat" }],
    state: { state: "queued", epoch: 1, attempts: 1, outcome: null },
  });
});

it("sees a hung computation behind a living process", async () => {
  const ended = await withSql(newPool(), sql => {
    computing(sql);
    for (let now = 5_000; now <= 25_000; now += 5_000) heartbeatAt(sql, now, 0);
    const early = store.expire(sql, 29_999, times);
    heartbeatAt(sql, 29_999, 0);
    return [...early, ...store.expire(sql, 30_000, times)].map(({ reason }) => reason);
  });
  expect(ended).toEqual(["no_progress"]);
});

it("waits eight times the slowest step of a slow computation", async () => {
  const ended = await withSql(newPool(), sql => {
    computing(sql);
    heartbeatAt(sql, 10_000, 2); // 5 s a step
    heartbeatAt(sql, 16_000, 3); // 6 s
    for (const now of [25_000, 35_000, 45_000, 55_000]) heartbeatAt(sql, now, 3);
    return [store.expire(sql, 63_999, times), store.expire(sql, 64_000, times)].map(list => list.map(({ reason }) => reason));
  });
  expect(ended).toEqual([[], ["no_progress"]]);
});

it("ends an attempt at its deadline however lively it is", async () => {
  const ended = await withSql(newPool(), sql => {
    computing(sql);
    for (let now = 1_000; now < 90_000; now += 1_000) heartbeatAt(sql, now, now);
    return [store.expire(sql, 89_999, times), store.expire(sql, 90_000, times)].map(list => list.map(({ reason }) => reason));
  });
  expect(ended).toEqual([[], ["attempt_deadline"]]);
});

it("fails after the last attempt is lost", async () => {
  const states = await withSql(newPool(), sql => {
    queue(sql);
    connect(sql, "r");
    return [0, 1, 2].map(i => {
      const now = i * 100_000;
      store.accept(sql, grant(sql, "e", "r", now), "r", now);
      store.expire(sql, now + 20_000, times);
      return [stateOf(sql)?.state, store.executionRow(sql, "e")?.detail];
    });
  });
  expect(states).toEqual([
    ["queued", null],
    ["queued", null],
    [
      "committing",
      JSON.stringify({ code: "attempts_exhausted", message: "3 attempts were lost; the last one: its runner was not heard of any more" }),
    ],
  ]);
});

it("fails at once what fails everywhere, and tries again what may succeed", async () => {
  const states = await withSql(newPool(), sql => {
    const first = computing(sql);
    store.fail(sql, first, error, true, "r", 0, times);
    const retried = stateOf(sql);
    const second = grant(sql, "e", "r", 0);
    store.fail(sql, second, error, false, "r", 0, times);
    return [retried, stateOf(sql)];
  });
  expect(states).toEqual([
    { state: "queued", epoch: 1, attempts: 1, outcome: null },
    { state: "committing", epoch: 2, attempts: 1, outcome: "failed" },
  ]);
});

it("requeues what a draining runner hands back without counting it", async () => {
  const seen = await withSql(newPool(), sql => {
    const lease = computing(sql);
    return [store.handBack(sql, lease, "released", "r", 0, times), store.handBack(sql, lease, "released", "r", 0, times), stateOf(sql)];
  });
  expect(seen).toEqual([true, false, { state: "queued", epoch: 1, attempts: 0, outcome: null }]);
});

it("takes a result only under the current epoch, from the instance that holds it", async () => {
  const answers = await withSql(newPool(), sql => {
    const old = computing(sql);
    store.expire(sql, 20_000, times);
    connect(sql, "s", 20_000);
    const current = grant(sql, "e", "s", 20_000);
    store.accept(sql, current, "s", 20_000);
    return [
      store.complete(sql, old, result, "r", 21_000),
      store.complete(sql, current, result, "r", 21_000),
      store.fail(sql, old, error, false, "r", 21_000, times),
      store.handBack(sql, old, "released", "r", 21_000, times),
      store.heartbeat(sql, "r", [{ execution: "e", epoch: 1, counter: 9 }], 21_000),
      stateOf(sql)?.state,
      store.complete(sql, current, result, "s", 22_000),
    ];
  });
  expect(answers).toEqual(["refused", "refused", false, false, [{ execution: "e", epoch: 1 }], "leased", "committing"]);
});

it("answers a repeated complete as the first one ended", async () => {
  const answers = await withSql(newPool(), sql => {
    const lease = computing(sql);
    const said = () => store.complete(sql, lease, result, "r", 0);
    const first = said();
    const whileSettling = said();
    store.settled(sql, "e", 0);
    return [first, whileSettling, said(), store.heartbeat(sql, "r", [{ execution: "e", epoch: 1, counter: 0 }], 0)];
  });
  expect(answers).toEqual(["committing", "committing", "committed", []]);
});

it("lets a commit beat a cancel, and a cancel beat a result that comes later", async () => {
  const seen = await withSql(newPool(), sql => {
    const lease = computing(sql);
    store.complete(sql, lease, result, "r", 0);
    store.abandon(sql, "e", 0);
    queue(sql, "f");
    const other = grant(sql, "f", "r", 0);
    const ended = store.abandon(sql, "f", 0).map(({ reason }) => reason);
    return [stateOf(sql)?.outcome, ended, store.complete(sql, other, result, "r", 0), stateOf(sql, "f")?.outcome];
  });
  expect(seen).toEqual(["succeeded", ["abandoned"], "refused", "canceled"]);
});

it("counts a result that cannot be taken as a lost attempt, unless nobody waits for another one", async () => {
  const states = await withSql(newPool(), sql => {
    const lease = computing(sql);
    store.complete(sql, lease, result, "r", 0);
    store.resultRefused(sql, "e", "there is no staged file", 0, times);
    const requeued = stateOf(sql);
    const again = store.complete(sql, lease, result, "r", 0);
    const second = grant(sql, "e", "r", 0);
    store.complete(sql, second, result, "r", 0);
    store.abandon(sql, "e", 0);
    store.resultRefused(sql, "e", "there is no staged file", 0, times);
    return [requeued, again, stateOf(sql)];
  });
  expect(states).toEqual([
    { state: "queued", epoch: 1, attempts: 1, outcome: null },
    "refused",
    { state: "committing", epoch: 2, attempts: 1, outcome: "canceled" },
  ]);
});

it("tries a settlement again later and later, until it ends", async () => {
  const seen = await withSql(newPool(), sql => {
    store.complete(sql, computing(sql), result, "r", 0);
    const due = [0, 1_000, 3_000].map(now => {
      const list = store.dueSettlements(sql, now);
      store.beginSettlement(sql, "e", now);
      return [list, store.executionRow(sql, "e")?.settle_at];
    });
    store.settled(sql, "e", 8_000);
    return [...due, store.dueSettlements(sql, 1e9), store.beginSettlement(sql, "e", 8_000)];
  });
  expect(seen).toEqual([[["e"], 1_000], [["e"], 3_000], [["e"], 7_000], [], undefined]);
  expect(settleDelay(100)).toBe(30_000);
});

it("settles once more what D1 calls live although it is over, but not what ended since D1 was asked", async () => {
  const states = await withSql(newPool(), sql => {
    store.complete(sql, computing(sql), result, "r", 0);
    store.settled(sql, "e", 100);
    store.settleAgain(sql, "e", 100);
    const meanwhile = stateOf(sql)?.state;
    store.settleAgain(sql, "e", 101);
    queue(sql, "f");
    store.abandon(sql, "f", 0);
    store.settled(sql, "f", 0);
    store.settleAgain(sql, "f", 101);
    return [meanwhile, stateOf(sql), stateOf(sql, "f")?.outcome];
  });
  expect(states).toEqual(["done", { state: "committing", epoch: 1, attempts: 0, outcome: "succeeded" }, "failed"]);
});

it("keeps leases over a lost socket: hello resumes them, and tells which are over", async () => {
  const greeting = await withSql(newPool(), sql => {
    computing(sql);
    queue(sql, "accept-was-lost");
    grant(sql, "accept-was-lost", "r", 0);
    queue(sql, "grant-was-lost");
    grant(sql, "grant-was-lost", "r", 0);
    queue(sql, "dropped");
    store.accept(sql, grant(sql, "dropped", "r", 0), "r", 0);
    const named = ["e", "accept-was-lost", "unknown"].map(execution => ({ execution, epoch: 1 }));
    const { verdicts, ended, accepted } = connect(sql, "r", 1_000, named);
    return {
      verdicts: verdicts.map(({ verdict }) => verdict),
      ended: ended.map(({ execution, reason }) => [execution, reason]),
      accepted,
      attempts: ["grant-was-lost", "dropped"].map(id => stateOf(sql, id)?.attempts),
    };
  });
  expect(greeting).toEqual({
    verdicts: ["keep", "keep", "abandon"],
    ended: [
      ["grant-was-lost", "not_acknowledged"],
      ["dropped", "not_held"],
    ],
    accepted: [{ execution: "accept-was-lost", epoch: 1 }],
    attempts: [0, 1],
  });
});

it("gives runners the full time to come back when the object itself was away", async () => {
  const seen = await withSql(newPool(), sql => {
    computing(sql);
    restarted(sql, ["r"], 60_000);
    const hibernated = nextDue(sql, 60_000, times);
    restarted(sql, [], 60_000);
    const away = nextDue(sql, 60_000, times);
    restarted(sql, [], 70_000);
    return [hibernated, away, nextDue(sql, 70_000, times), store.expire(sql, 79_999, times)];
  });
  expect(seen).toEqual([20_000, 80_000, 80_000, []]);
});

it("ends the leases of a revoked token and refuses it from then on", async () => {
  const seen = await withSql(newPool(), sql => {
    const lease = computing(sql);
    const ended = revoke(sql, "token-r", 0, times).map(({ reason }) => reason);
    return [ended, stateOf(sql), isRevoked(sql, "token-r"), isRevoked(sql, "token-s"), store.complete(sql, lease, result, "r", 0)];
  });
  expect(seen).toEqual([["token_revoked"], { state: "queued", epoch: 1, attempts: 0, outcome: null }, true, false, "refused"]);
});

it("ties an instance to the token that it first came with", async () => {
  const may = await withSql(newPool(), sql => {
    const before = mayGreet(sql, "r", "other");
    connect(sql, "r");
    return [before, mayGreet(sql, "r", "token-r"), mayGreet(sql, "r", "other")];
  });
  expect(may).toEqual([true, true, false]);
});

it("forgets tombstones once no offer can be left, and not before; with the last one, their tenant", async () => {
  const known = await withSql(newPool(), sql => {
    store.complete(sql, computing(sql), result, "r", 0);
    store.settled(sql, "e", 0);
    const tenants = () => sql.exec<{ n: number }>("SELECT COUNT(*) AS n FROM tenants").one().n;
    return [TOMBSTONE_MS - 1, TOMBSTONE_MS].map(now => {
      store.prune(sql, now);
      return [store.knows(sql, "e"), tenants()];
    });
  });
  expect(known).toEqual([
    ["tombstoned", 1],
    [undefined, 0],
  ]);
});

/** Three executions of one batch, granted to `r` together and accepted. */
function computingBatch(sql: SqlStorage) {
  const executions = ["x", "y", "z"];
  for (const execution of executions) {
    const offered = { execution, tenant: "t", params_sha256: "", model_hash: "m", refiner_hash: "", engine_version: 1, request_id: "req" };
    store.enqueue(sql, { ...offered, batch_key: "k", adapters: [], kind: "picture", deadline_at: 0 });
  }
  connect(sql, "r");
  const leases = store.lease(sql, { executions, instance: "r", overtaken: null }, 0, times);
  for (const lease of leases) store.accept(sql, lease, "r", 0);
  return leases;
}
const batchKeys = (sql: SqlStorage) => ["x", "y", "z"].map(id => store.executionRow(sql, id)?.batch_key);

it("retries the members of a lost batch alone, and counts only what is lost alone", async () => {
  const seen = await withSql(newPool(), sql => {
    const [x] = computingBatch(sql);
    store.complete(sql, x!, result, "r", 0);
    store.expire(sql, 20_000, times);
    const afterBatch = ["x", "y", "z"].map(id => stateOf(sql, id));
    const keys = batchKeys(sql);
    store.accept(sql, grant(sql, "y", "r", 20_000), "r", 20_000);
    store.expire(sql, 40_000, times);
    return { afterBatch, keys, afterSolo: stateOf(sql, "y") };
  });
  expect(seen).toEqual({
    afterBatch: [
      { state: "committing", epoch: 1, attempts: 0, outcome: "succeeded" },
      { state: "queued", epoch: 1, attempts: 0, outcome: null },
      { state: "queued", epoch: 1, attempts: 0, outcome: null },
    ],
    keys: ["k", "", ""],
    afterSolo: { state: "queued", epoch: 2, attempts: 1, outcome: null },
  });
});

it("ends one member of a batch by itself: a deterministic error, a cancel, a loss", async () => {
  const states = await withSql(newPool(), sql => {
    const [x, , z] = computingBatch(sql);
    store.fail(sql, x!, error, false, "r", 0, times);
    store.abandon(sql, "y", 0);
    store.fail(sql, z!, error, true, "r", 0, times);
    return [...["x", "y", "z"].map(id => stateOf(sql, id)), batchKeys(sql)[2]];
  });
  expect(states).toEqual([
    { state: "committing", epoch: 1, attempts: 0, outcome: "failed" },
    { state: "committing", epoch: 1, attempts: 0, outcome: "canceled" },
    { state: "queued", epoch: 1, attempts: 0, outcome: null },
    "",
  ]);
});

it("tries alone what was refused in a batch, and together again what was only handed back", async () => {
  const keys = await withSql(newPool(), sql => {
    const [x, y] = computingBatch(sql);
    store.handBack(sql, x!, "rejected", "r", 0, times);
    store.handBack(sql, y!, "released", "r", 0, times);
    return batchKeys(sql);
  });
  expect(keys).toEqual(["", "k", "k"]);
});

it("gives a batch as many times the time of an attempt as it has members", async () => {
  const deadlines = await withSql(newPool(), sql => computingBatch(sql).map(lease => lease.attempt_deadline));
  expect(deadlines).toEqual([270_000, 270_000, 270_000]);
});

it("brings the tables of an older object up to date, with what is in them", async () => {
  const seen = await withSql(newPool(), sql => {
    for (const table of ["migrations", "executions", "leases", "instances", "tenants", "revoked_tokens", "pool"])
      sql.exec(`DROP TABLE ${table}`);
    migrate(sql, 1);
    sql.exec(
      `INSERT INTO executions (id, tenant, params_sha256, model_hash, engine_version, request_id, state, epoch)
       VALUES ('e', 't', '', 'm', 1, 'req', 'leased', 1), ('f', 't', '', 'm', 1, 'req', 'leased', 1), ('g', 't', '', 'm', 1, 'req', 'queued', 0)`,
    );
    sql.exec("INSERT INTO tenants VALUES ('t', 1)");
    sql.exec(
      "INSERT INTO instances (id, token, provider, engine_version, models, ready, connected, last_seen) VALUES ('r', 't', 'cpu', 1, '[\"m\"]', 1, 1, 0)",
    );
    for (const id of ["e", "f"])
      sql.exec(
        "INSERT INTO leases (execution, epoch, instance, ack_deadline, last_heartbeat, counter_changed_at, attempt_deadline) VALUES (?, 1, 'r', 9, 0, 0, 9)",
        id,
      );
    migrate(sql);
    migrate(sql);
    ready(sql, "r", 3);
    const credit = sql.exec<{ ready: number }>("SELECT ready FROM instances").one().ready;
    return { credit, choice: choose(sql, 0, times), completed: store.complete(sql, { execution: "e", epoch: 1 }, result, "r", 0) };
  });
  expect(seen).toEqual({
    credit: 1,
    choice: { instance: "r", executions: ["g"], overtaken: null },
    completed: "committing",
  });
});
