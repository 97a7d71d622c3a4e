import { expect, it } from "vitest";
import { RUNNER_TOKEN_HEADER } from "../../../edge/dispatcher/sockets.ts";
import { newId } from "../../../edge/ids.ts";
import { ENGINE_VERSION, PROTOCOL_VERSION } from "../../../shared/engine.ts";
import { acceptJob, dispatcherOf, fallDue, MODEL_HASH, newPool, offer, TestRunner } from "./support.ts";

const hello = {
  ...{ v: PROTOCOL_VERSION, type: "hello", instance: newId("instance"), engine_version: ENGINE_VERSION },
  ...{ provider: "cpu", models: [], max_batch: 1, leases: [] },
};

const bad: [string, string | ArrayBuffer][] = [
  ["no JSON", "{"],
  ["a binary message", new ArrayBuffer(4)],
  ["an unknown type", JSON.stringify({ v: PROTOCOL_VERSION, type: "dance" })],
  ["another version", JSON.stringify({ ...hello, v: PROTOCOL_VERSION + 1 })],
  ["a field too many", JSON.stringify({ ...hello, secret: 1 })],
  ["a wrong id", JSON.stringify({ ...hello, instance: "ins_1" })],
  ["a message before hello", JSON.stringify({ v: PROTOCOL_VERSION, type: "ready", n: 1, resident: [] })],
  ["a message of a megabyte", JSON.stringify({ ...hello, provider: "x".repeat(2 ** 20) })],
];

it.each(bad)("answers %s with an error and closes, and lives on", async (_, text) => {
  const pool = newPool();
  const runner = await TestRunner.open(pool);
  runner.raw(text);
  expect(await runner.next("error")).toMatchObject({ code: "invalid_request" });
  expect(await runner.untilClosed()).toBe(4400);
  await TestRunner.connect(pool);
  expect(await dispatcherOf(pool).describe({ v: 1, executions: [], models: [MODEL_HASH] })).toMatchObject({ served: [MODEL_HASH] });
});

it("quotes nothing of a bad message", async () => {
  const runner = await TestRunner.open(newPool());
  runner.raw(JSON.stringify({ ...hello, instance: "a secret prompt" }));
  expect((await runner.next("error")).message).not.toContain("secret");
});

it("has one socket an instance: a newer one takes over, and the older one's end means nothing", async () => {
  const pool = newPool();
  const old = await TestRunner.connect(pool);
  const { instance, token } = old;
  const runner = await TestRunner.connect(pool, { instance, token, ready: 1 });
  expect(await old.untilClosed()).toBe(4409);
  const job = await acceptJob(pool);
  await offer(pool, job);
  await runner.acceptLease();
  expect(await dispatcherOf(pool).describe({ v: 1, executions: [], models: [MODEL_HASH] })).toMatchObject({ served: [MODEL_HASH] });
});

it("refuses an instance that came with another token, and another instance on the same socket", async () => {
  const pool = newPool();
  const { instance } = await TestRunner.connect(pool);
  const thief = await TestRunner.open(pool, { instance });
  thief.hello();
  expect(await thief.next("error")).toMatchObject({ code: "forbidden" });
  const runner = await TestRunner.connect(pool);
  runner.raw(JSON.stringify({ ...hello, instance: newId("instance") }));
  expect(await runner.next("error")).toMatchObject({ code: "invalid_request" });
  expect(await runner.untilClosed()).toBe(4400);
});

it("closes the sockets of a revoked token and gives its work to others", async () => {
  const pool = newPool();
  const job = await acceptJob(pool);
  await offer(pool, job);
  const revoked = await TestRunner.connect(pool, { ready: 1 });
  const { execution, epoch } = await revoked.acceptLease();
  const runner = await TestRunner.connect(pool, { ready: 1 });
  await dispatcherOf(pool).revoke({ v: 1, token: revoked.token });
  expect(await revoked.next("error")).toMatchObject({ code: "unauthorized" });
  expect(await revoked.untilClosed()).toBe(4401);
  expect(await runner.acceptLease()).toMatchObject({ execution, epoch: epoch + 1 });
  expect(await dispatcherOf(pool).holds({ v: 1, execution, epoch, instance: revoked.instance })).toBe(false);
  await expect(TestRunner.open(pool, { token: revoked.token })).rejects.toThrow("expected a socket, got 401");
});

it("takes an instance that has long been silent for gone", async () => {
  const pool = newPool();
  const runner = await TestRunner.connect(pool, { ready: 1 });
  await fallDue(pool, "instances", "last_seen");
  expect(await runner.untilClosed()).toBe(4408);
  expect(await dispatcherOf(pool).describe({ v: 1, executions: [], models: [MODEL_HASH] })).toMatchObject({ served: [] });
});

it("opens sockets only for upgrades with a verified token", async () => {
  const dispatcher = dispatcherOf(newPool());
  const url = "https://dispatcher/runner/v1/socket";
  expect((await dispatcher.fetch(url, { headers: { upgrade: "websocket" } })).status).toBe(401);
  expect((await dispatcher.fetch(url, { headers: { [RUNNER_TOKEN_HEADER]: newId("runnerToken") } })).status).toBe(426);
});

it("shows the pool to its operator", async () => {
  const pool = newPool();
  const runner = await TestRunner.connect(pool, { ready: 2 });
  await offer(pool, await acceptJob(pool));
  await runner.acceptLease();
  await offer(pool, await acceptJob(pool, { modelHash: `sha256:${"b".repeat(64)}` }));
  const status = await dispatcherOf(pool).sweep({ v: 1 });
  const { instance, token } = runner;
  expect(status).toMatchObject({ pool, queued: 1, leased: 1, committing: 0 });
  expect(status.runners).toMatchObject([{ instance, token, provider: "cpu", models: [MODEL_HASH], ready: 1, leases: 1 }]);
});
