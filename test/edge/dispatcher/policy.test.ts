import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { greet, ready } from "../../../edge/dispatcher/instances.ts";
import { choose, nextDue } from "../../../edge/dispatcher/policy.ts";
import * as store from "../../../edge/dispatcher/store.ts";
import type { Times } from "../../../edge/dispatcher/times.ts";
import { describeExecution } from "../../../edge/dispatcher/views.ts";
import type { ExecutionKind } from "../../../shared/signing.ts";
import { newPool, withSql } from "./support.ts";

const times: Times = { lease: 20_000, ack: 5_000, stall: 30_000, attempt: 90_000, maxAttempts: 3, trainingShare: 0.5 };
const result = { sha256: "0".repeat(64), bytes: 1, width: 1, height: 1 };

interface Queued {
  tenant?: string;
  model?: string;
  refiner?: string;
  engine?: number;
  batch?: string;
  adapters?: string[];
  kind?: ExecutionKind;
}

function queue(
  sql: SqlStorage,
  execution: string,
  { tenant = "t", model = "m", refiner = "", engine = 1, batch = "", adapters = [], kind = "picture" }: Queued = {},
): void {
  store.enqueue(sql, {
    execution,
    tenant,
    params_sha256: "",
    model_hash: model,
    refiner_hash: refiner,
    engine_version: engine,
    request_id: "r",
    batch_key: batch,
    adapters,
    kind,
    deadline_at: kind === "training" ? 1_000_000 : 0,
  });
}

function connect(
  sql: SqlStorage,
  instance: string,
  { n = 1, models = ["m"], engine = 1, now = 0, maxBatch = 1, resident = [] as string[], trains = false } = {},
): void {
  greet(sql, { instance, engine_version: engine, provider: "cpu", models, max_batch: maxBatch, trains, leases: [] }, "token", now, times);
  ready(sql, instance, n, resident);
}

/** Makes one grant and completes it; its executions, or undefined when nothing can be granted. */
function serveGrant(sql: SqlStorage, now = 0, resident: string[] = []): readonly string[] | undefined {
  const choice = choose(sql, now, times);
  if (!choice) return undefined;
  for (const lease of store.lease(sql, choice, now, times)) {
    store.accept(sql, lease, choice.instance, now);
    store.complete(sql, lease, result, choice.instance, now);
  }
  ready(sql, choice.instance, 1, resident);
  return choice.executions;
}

/** The same where grants are of one execution. */
function serve(sql: SqlStorage, now = 0): string | undefined {
  return serveGrant(sql, now)?.[0];
}

function serveAll(sql: SqlStorage): string[] {
  const served: string[] = [];
  for (let next = serve(sql); next !== undefined; next = serve(sql)) served.push(next);
  return served;
}

it("gives what needs a refiner only to an instance that has both models, and holds up nothing else", async () => {
  const seen = await withSql(newPool(), sql => {
    queue(sql, "refined", { refiner: "r" });
    queue(sql, "refined-too", { refiner: "r" });
    queue(sql, "plain");
    connect(sql, "one-model", { n: 5 });
    const alone = serve(sql);
    const without = [serve(sql), describeExecution(sql, "refined").no_runner];
    connect(sql, "refiner-only", { models: ["r"], n: 5 });
    const stillNone = [serve(sql), describeExecution(sql, "refined").no_runner];
    connect(sql, "both", { models: ["r", "m"], n: 5 });
    const known = describeExecution(sql, "refined").no_runner;
    const choice = choose(sql, 0, times);
    return { alone, without, stillNone, known, choice, rest: serveAll(sql) };
  });
  expect(seen).toEqual({
    alone: "plain",
    without: [undefined, true],
    stillNone: [undefined, true],
    known: false,
    choice: { instance: "both", executions: ["refined"], overtaken: null },
    rest: ["refined", "refined-too"],
  });
});

it("takes an instance whose refiner lies in its memory for warmer than one that has to load it", async () => {
  const choice = await withSql(newPool(), sql => {
    queue(sql, "refined", { refiner: "r" });
    connect(sql, "half-warm", { models: ["m", "r"], resident: ["m"] });
    connect(sql, "warm", { models: ["m", "r"], resident: ["m", "r"] });
    return choose(sql, 0, times);
  });
  expect(choice?.instance).toBe("warm");
});

it("hands back what needs a refiner to none without it", async () => {
  const seen = await withSql(newPool(), sql => {
    queue(sql, "refined", { refiner: "r" });
    connect(sql, "both", { models: ["m", "r"] });
    const [lease] = store.lease(sql, choose(sql, 0, times)!, 0, times);
    store.handBack(sql, lease!, "released", "both", 0, times);
    connect(sql, "one-model");
    return choose(sql, 0, times);
  });
  expect(seen).toBeUndefined();
});

it("lets tenants take turns, first in first out within each", async () => {
  const order = await withSql(newPool(), sql => {
    for (const id of ["a1", "a2", "a3"]) queue(sql, id, { tenant: "a" });
    for (const id of ["b1", "b2"]) queue(sql, id, { tenant: "b" });
    connect(sql, "r");
    const first = serve(sql);
    queue(sql, "c1", { tenant: "c" });
    return [first, ...serveAll(sql)];
  });
  expect(order).toEqual(["a1", "b1", "c1", "a2", "b2", "a3"]);
});

it("tells the position in which executions are then served", async () => {
  const tenants = fc.array(fc.constantFrom("a", "b", "c", "d"), { minLength: 1, maxLength: 20 });
  await withSql(newPool(), sql => {
    fc.assert(
      fc.property(tenants, tenants, (before, waiting) => {
        for (const table of ["executions", "tenants", "instances", "leases"]) sql.exec(`DELETE FROM ${table}`);
        for (const [i, tenant] of before.entries()) queue(sql, `before-${i}`, { tenant });
        connect(sql, "r");
        serveAll(sql);
        for (const [i, tenant] of waiting.entries()) queue(sql, `waiting-${i}`, { tenant });
        const positions = waiting.map((_, i) => describeExecution(sql, `waiting-${i}`).position);
        const served = serveAll(sql);
        expect(positions).toEqual(waiting.map((_, i) => served.indexOf(`waiting-${i}`)));
      }),
    );
  });
});

it("serves a waiting tenant after at most one grant to each of the others, however much they send", async () => {
  const arrivals = fc.array(fc.record({ tenant: fc.nat({ max: 4 }), n: fc.nat({ max: 4 }) }), { minLength: 5, maxLength: 60 });
  await withSql(newPool(), sql => {
    fc.assert(
      fc.property(arrivals, arriving => {
        for (const table of ["executions", "tenants", "instances", "leases"]) sql.exec(`DELETE FROM ${table}`);
        connect(sql, "r");
        const waiting = new Map<string, number>();
        const passed = new Map<string, number>();
        let count = 0;
        for (const { tenant, n } of arriving) {
          for (let i = 0; i < n; i++) queue(sql, `${tenant}:${count++}`, { tenant: `${tenant}` });
          waiting.set(`${tenant}`, (waiting.get(`${tenant}`) ?? 0) + n);
          const served = serve(sql)?.split(":")[0];
          if (served === undefined) continue;
          waiting.set(served, waiting.get(served)! - 1);
          for (const [other, left] of waiting) passed.set(other, other === served || left === 0 ? 0 : (passed.get(other) ?? 0) + 1);
          for (const turns of passed.values()) expect(turns).toBeLessThanOrEqual(4);
        }
      }),
    );
  });
});

it("gives an instance only what it can compute: same engine version, a model that it has", async () => {
  const served = await withSql(newPool(), sql => {
    queue(sql, "other-model", { model: "x" });
    queue(sql, "other-engine", { engine: 2 });
    queue(sql, "fits");
    connect(sql, "r", { models: ["m", "n"] });
    const before = serveAll(sql);
    connect(sql, "s", { models: ["x"] });
    return { before, after: serveAll(sql) };
  });
  expect(served).toEqual({ before: ["fits"], after: ["other-model"] });
});

it("never grants more than an instance has asked for, and counts grants that it has not answered", async () => {
  const granted = await withSql(newPool(), sql => {
    for (let i = 0; i < 5; i++) queue(sql, `e${i}`);
    connect(sql, "r", { n: 2 });
    const grantAll = () => {
      let n = 0;
      for (let choice = choose(sql, 0, times); choice; choice = choose(sql, 0, times), n++) store.lease(sql, choice, 0, times);
      return n;
    };
    const first = grantAll();
    ready(sql, "r", 3);
    return [first, grantAll(), grantAll()];
  });
  expect(granted).toEqual([2, 1, 0]);
});

it("spreads work over instances, the one that waits longest first", async () => {
  const instances = await withSql(newPool(), sql => {
    for (let i = 0; i < 4; i++) queue(sql, `e${i}`);
    for (const id of ["r", "s"]) connect(sql, id, { n: 2 });
    return Array.from({ length: 4 }, () => {
      const choice = choose(sql, 0, times)!;
      store.lease(sql, choice, 0, times);
      return choice.instance;
    });
  });
  expect(instances).toEqual(["r", "s", "r", "s"]);
});

it("puts what was handed back uncomputed before everything else, but not to the same instance at once", async () => {
  const seen = await withSql(newPool(), sql => {
    queue(sql, "a1", { tenant: "a" });
    queue(sql, "b1", { tenant: "b" });
    queue(sql, "b0", { tenant: "b" });
    connect(sql, "r", { n: 1 });
    const [lease] = store.lease(sql, choose(sql, 0, times)!, 0, times);
    store.handBack(sql, lease!, "released", "r", 0, times);
    const sameInstance = choose(sql, 4_999, times);
    const due = nextDue(sql, 0, times);
    const later = choose(sql, 5_000, times);
    connect(sql, "s");
    return { sameInstance, due, later, other: choose(sql, 0, times) };
  });
  expect(seen).toEqual({
    sameInstance: undefined,
    due: 5_000,
    later: { executions: ["a1"], instance: "r", overtaken: null },
    other: { executions: ["a1"], instance: "s", overtaken: null },
  });
});

/** Every grant that can be made, with what it gives. */
function serveGrants(sql: SqlStorage): (readonly string[])[] {
  const served: (readonly string[])[] = [];
  for (let next = serveGrant(sql); next; next = serveGrant(sql)) served.push(next);
  return served;
}

it("fills a grant with executions of the same batch key, up to what the instance takes", async () => {
  const grants = await withSql(newPool(), sql => {
    for (const id of ["x1", "x2", "x3", "x4", "x5"]) queue(sql, id, { batch: "x" });
    queue(sql, "alone");
    queue(sql, "alone-too");
    queue(sql, "y1", { batch: "y" });
    connect(sql, "r", { maxBatch: 5 });
    connect(sql, "r", { maxBatch: 3 });
    return serveGrants(sql);
  });
  expect(grants).toEqual([["x1", "x2", "x3"], ["x4", "x5"], ["alone"], ["alone-too"], ["y1"]]);
});

it("puts one execution of each tenant into a batch before anybody's second, and counts it as their turn", async () => {
  const grants = await withSql(newPool(), sql => {
    for (const id of ["a1", "a2", "a3"]) queue(sql, id, { tenant: "a", batch: "x" });
    queue(sql, "a-other", { tenant: "a" });
    for (const id of ["b1", "b2"]) queue(sql, id, { tenant: "b", batch: "x" });
    queue(sql, "c-other", { tenant: "c" });
    queue(sql, "c1", { tenant: "c", batch: "x" });
    connect(sql, "r", { maxBatch: 4 });
    return serveGrants(sql);
  });
  expect(grants).toEqual([["a1", "b1", "c1", "a2"], ["a3", "b2"], ["c-other"], ["a-other"]]);
});

it("serves a waiting tenant after at most one grant to each of the others, with batches too", async () => {
  const arrivals = fc.array(fc.record({ tenant: fc.nat({ max: 4 }), n: fc.nat({ max: 6 }), batch: fc.constantFrom("", "x", "y") }), {
    minLength: 5,
    maxLength: 60,
  });
  await withSql(newPool(), sql => {
    fc.assert(
      fc.property(arrivals, fc.integer({ min: 1, max: 5 }), (arriving, maxBatch) => {
        for (const table of ["executions", "tenants", "instances", "leases"]) sql.exec(`DELETE FROM ${table}`);
        connect(sql, "r", { maxBatch });
        const waiting = new Map<string, number>();
        const passed = new Map<string, number>();
        let count = 0;
        for (const { tenant, n, batch } of arriving) {
          for (let i = 0; i < n; i++) queue(sql, `${tenant}:${count++}`, { tenant: `${tenant}`, batch });
          waiting.set(`${tenant}`, (waiting.get(`${tenant}`) ?? 0) + n);
          const served = serveGrant(sql)?.map(id => id.split(":")[0]!);
          if (!served) continue;
          for (const each of served) waiting.set(each, waiting.get(each)! - 1);
          for (const [other, left] of waiting) passed.set(other, served.includes(other) || left === 0 ? 0 : (passed.get(other) ?? 0) + 1);
          for (const turns of passed.values()) expect(turns).toBeLessThanOrEqual(4);
        }
      }),
    );
  });
});

it("counts a batch as one grant of an instance's credit, which comes back when all of it was withdrawn", async () => {
  const seen = await withSql(newPool(), sql => {
    for (const id of ["x1", "x2", "x3"]) queue(sql, id, { batch: "x" });
    queue(sql, "later");
    connect(sql, "r", { n: 2, maxBatch: 3 });
    const credit = () => sql.exec<{ ready: number }>("SELECT ready FROM instances").one().ready;
    const leases = store.lease(sql, choose(sql, 0, times)!, 0, times);
    const granted = credit();
    ready(sql, "r", 2);
    const saidAgain = credit();
    const ended = store.expire(sql, 5_000, times).length;
    const [first, second] = [credit(), choose(sql, 10_000, times)?.executions];
    return { leases: leases.length, granted, saidAgain, ended, first, second };
  });
  // Who was not accepted in a batch is tried alone.
  expect(seen).toEqual({ leases: 3, granted: 1, saidAgain: 1, ended: 3, first: 2, second: ["x1"] });
});

it("prefers what an instance has in memory within a tenant's turn, a bounded number of times", async () => {
  const order = await withSql(newPool(), sql => {
    queue(sql, "cold", { model: "m" });
    for (let i = 0; i < 8; i++) queue(sql, `warm-${i}`, { model: "n" });
    connect(sql, "r", { models: ["m", "n"], resident: ["n"] });
    const served: (readonly string[] | undefined)[] = [];
    for (let i = 0; i < 6; i++) served.push(serveGrant(sql, 0, ["n"]));
    return served.flat();
  });
  expect(order).toEqual(["warm-0", "warm-1", "warm-2", "warm-3", "cold", "warm-4"]);
});

it("prefers the execution whose adapters lie in memory, too, but nobody's turn is skipped for it", async () => {
  const order = await withSql(newPool(), sql => {
    queue(sql, "a-other-adapter", { tenant: "a", adapters: ["s"] });
    queue(sql, "b-warm", { tenant: "b", adapters: ["l"] });
    queue(sql, "a-warm", { tenant: "a", adapters: ["l"] });
    connect(sql, "r", { resident: ["m", "l"] });
    return Array.from({ length: 3 }, () => serveGrant(sql, 0, ["m", "l"])).flat();
  });
  expect(order).toEqual(["a-warm", "b-warm", "a-other-adapter"]);
});

it("gives an execution to the idle instance that has its model in memory, and to any other where that one is busy", async () => {
  const instances = await withSql(newPool(), sql => {
    for (const id of ["e1", "e2"]) queue(sql, id);
    connect(sql, "cold");
    connect(sql, "warm", { resident: ["m"] });
    return [0, 1].map(() => {
      const choice = choose(sql, 0, times)!;
      store.lease(sql, choice, 0, times);
      return [choice.instance, choice.executions[0]];
    });
  });
  expect(instances).toEqual([
    ["warm", "e1"],
    ["cold", "e2"],
  ]);
});

describe("trainings", () => {
  const leased = (sql: SqlStorage) =>
    sql.exec<{ execution: string; instance: string }>("SELECT execution, instance FROM leases ORDER BY execution").toArray();
  /** Grants all that can be granted, and keeps it computing. */
  const grantAll = (sql: SqlStorage) => {
    for (let choice = choose(sql, 0, times); choice; choice = choose(sql, 0, times))
      for (const lease of store.lease(sql, choice, 0, times)) store.accept(sql, lease, choice.instance, 0);
    return leased(sql);
  };

  it("go only to runners that take them, one each, and have the time of their job", async () => {
    const seen = await withSql(newPool(), sql => {
      connect(sql, "pictures", { n: 4 });
      queue(sql, "t1", { kind: "training" });
      queue(sql, "t2", { kind: "training" });
      queue(sql, "p");
      const before = grantAll(sql);
      connect(sql, "trainer", { n: 4, trains: true });
      return { before, after: grantAll(sql), deadline: sql.exec("SELECT attempt_deadline FROM leases WHERE execution = 't1'").one() };
    });
    expect(seen).toEqual({
      before: [{ execution: "p", instance: "pictures" }],
      after: [
        { execution: "p", instance: "pictures" },
        { execution: "t1", instance: "trainer" },
      ],
      deadline: { attempt_deadline: 1_000_000 },
    });
  });

  it("may open their sessions longer than a picture's step takes before they count as hung", async () => {
    const held = await withSql(newPool(), sql => {
      connect(sql, "r", { n: 2, trains: true });
      queue(sql, "t1", { kind: "training" });
      queue(sql, "p");
      grantAll(sql);
      const beat = (now: number) => sql.exec("UPDATE leases SET last_heartbeat = ?", now);
      const at = (now: number) => {
        beat(now);
        store.expire(sql, now, times);
        return leased(sql).map(({ execution }) => execution);
      };
      return [at(29_000), at(31_000), at(479_000), at(481_000)];
    });
    expect(held).toEqual([["p", "t1"], ["t1"], ["t1"], []]);
  });

  it("come before no picture where another runner is free: one draws between the steps of a training only where nobody else can", async () => {
    const pictures = await withSql(newPool(), sql => {
      connect(sql, "trainer", { trains: true });
      queue(sql, "t1", { kind: "training" });
      grantAll(sql);
      connect(sql, "other");
      queue(sql, "p1");
      grantAll(sql);
      // The other one was given something last.
      for (const instance of ["trainer", "other"]) ready(sql, instance, 1);
      for (const execution of ["p2", "p3"]) queue(sql, execution);
      return grantAll(sql);
    });
    expect(pictures).toEqual([
      { execution: "p1", instance: "other" },
      { execution: "p2", instance: "other" },
      { execution: "p3", instance: "trainer" },
      { execution: "t1", instance: "trainer" },
    ]);
  });

  it("leave half of the runners to pictures", async () => {
    const granted = await withSql(newPool(), sql => {
      for (const instance of ["a", "b", "c", "d"]) connect(sql, instance, { trains: true });
      for (const execution of ["t1", "t2", "t3", "t4"]) queue(sql, execution, { kind: "training" });
      const trainings = grantAll(sql).length;
      queue(sql, "p1");
      queue(sql, "p2");
      return { trainings, all: grantAll(sql).map(({ execution }) => execution) };
    });
    expect(granted).toEqual({ trainings: 2, all: ["p1", "p2", "t1", "t2"] });
  });
});
