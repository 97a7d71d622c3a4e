import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { ulid } from "ulid";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ENGINE_VERSION, PROTOCOL_VERSION } from "../../../shared/engine.ts";
import { canonicalPictureRequest } from "../../../shared/picture.ts";
import { EdgePeer, type GrantChanges, inputOf, newExecution, newKey, pictureRequest } from "./edge-peer.ts";
import { runnerFor } from "./harness.ts";

let peer: EdgePeer;
let stop: (() => Promise<unknown>)[];

beforeEach(async () => {
  peer = await EdgePeer.start();
  stop = [];
});
afterEach(async () => {
  for (const end of stop) await end();
  await peer.close();
});

async function start(environment: Record<string, string> = {}) {
  const started = runnerFor(peer, environment);
  stop.push(() => started.runner.drain(0));
  await started.runner.start();
  await peer.connected();
  return started;
}

function job(prompt: string, steps = 4) {
  return { execution: newExecution(), epoch: 1, request: pictureRequest({ prompt, steps }) };
}

async function outcomes(metrics: ReturnType<typeof runnerFor>["metrics"]) {
  const { values } = await metrics.executions.get();
  return Object.fromEntries(values.map(({ labels, value }) => [labels.outcome, value]));
}

describe("a lease from grant to commit", () => {
  test("is accepted, computed, uploaded with its hash, completed and forgotten", async () => {
    const { metrics } = await start();
    const work = job("steps 20");
    await peer.grant([work]);
    const complete = await peer.until(() => peer.of("complete")[0], "complete");
    const upload = peer.uploads[0]!;
    expect(upload.path).toBe(`/runner/v1/objects/staging/${work.execution}/1/result`);
    expect(upload.token).toBe(`result.${work.execution}.1`);
    expect(upload.contentLength).toBe(upload.body.byteLength);
    expect(complete.result).toEqual({ sha256: upload.sha256, bytes: upload.body.byteLength, width: 128, height: 128 });
    expect(peer.of("accept")[0]?.leases).toEqual([{ execution: work.execution, epoch: 1 }]);
    await peer.until(() => peer.of("heartbeat").at(-1)?.leases.length === 0, "a heartbeat without leases");
    expect(peer.of("ready").at(-1)?.n).toBe(1);
    expect(await outcomes(metrics)).toEqual({ committed: 1 });
  });

  test("reports progress under its capability, the last step last", async () => {
    await start();
    const work = job("steps 30", 3);
    await peer.grant([work]);
    await peer.until(() => peer.progress.find(({ body }) => (body as { step: number }).step === 3), "the last step");
    expect(new Set(peer.progress.map(({ path, token }) => `${path} ${token}`))).toEqual(
      new Set([`/runner/v1/executions/${work.execution}/progress progress.${work.execution}.1`]),
    );
  });

  test("executions of one grant are computed one after another", async () => {
    await start();
    const works = [job("steps 20"), job("steps 20"), job("steps 20")];
    await peer.grant(works);
    await peer.until(() => peer.of("complete").length === 3, "three completes");
    expect(peer.of("complete").map(({ execution }) => execution)).toEqual(works.map(({ execution }) => execution));
  });

  test("a grant that comes twice is accepted twice and computed once", async () => {
    await start();
    const work = job("steps 50");
    await peer.grant([work]);
    await peer.grant([work]);
    await peer.until(() => peer.of("complete")[0], "complete");
    expect(peer.of("accept").length).toBe(2);
    await peer.grant([work]);
    await peer.until(() => peer.of("reject")[0], "a reject of the ended epoch");
    expect(peer.uploads.length).toBe(1);
  });

  test("heartbeats carry the model thread's counter while it computes", async () => {
    await start();
    const work = job("steps 60", 10);
    await peer.grant([work]);
    await peer.until(() => peer.of("complete")[0], "complete");
    const counters = peer.of("heartbeat").flatMap(({ leases }) => leases.map(({ counter }) => counter));
    expect(counters.length).toBeGreaterThanOrEqual(4);
    expect(new Set(counters).size).toBeGreaterThanOrEqual(4);
    expect(counters).toEqual([...counters].sort((a, b) => a - b));
  });
});

describe("a grant is refused before anything is computed", () => {
  const wrong: Record<string, () => GrantChanges> = {
    other_instance: () => ({ instance: `ins_${ulid()}` }),
    unknown_key: () => ({ key: newKey("other") }),
    bad_signature: () => ({ key: newKey("grant-test") }),
    expired: () => ({ exp: Math.floor(Date.now() / 1000) - 61 }),
    not_granted: () => ({ claimedEpoch: 2 }),
    other_params: () => ({ sentParams: canonicalPictureRequest(pictureRequest({ prompt: "steps 1 more" })) }),
    attempt_over: () => ({ attemptDeadline: Date.now() - 1 }),
    params_malformed: () => {
      const params = canonicalPictureRequest(pictureRequest()).replace(
        `"engine_version":${ENGINE_VERSION}`,
        `"engine_version":${ENGINE_VERSION + 1}`,
      );
      return { sentParams: params, claimedParams: params };
    },
  };
  test.each(Object.keys(wrong))("%s", async reason => {
    const { metrics, lines } = await start();
    const work = job("steps 1");
    await peer.grant([work], wrong[reason]!());
    const reject = await peer.until(() => peer.of("reject")[0], "reject");
    expect(reject.leases).toEqual([{ execution: work.execution, epoch: 1 }]);
    expect((await metrics.grantsRefused.get()).values).toEqual([{ labels: { reason }, value: 1 }]);
    expect(lines.join("")).toContain(reason);
    await delay(150);
    expect([peer.of("accept").length, peer.uploads.length, peer.progress.length, peer.of("complete").length]).toEqual([0, 0, 0, 0]);
    expect(peer.of("ready").at(-1)?.n).toBe(1);
  });

  test("a message that can't be read is dropped, and the next grant works", async () => {
    const { metrics } = await start();
    peer.sendText(`{"v":${PROTOCOL_VERSION + 1},"type":"lease"}`);
    peer.sendText("not json");
    await peer.grant([job("steps 1")]);
    await peer.until(() => peer.of("complete")[0], "complete");
    expect((await metrics.badMessages.get()).values[0]?.value).toBe(2);
  });
});

describe("a cut socket", () => {
  test("ends no lease: hello lists it, and it completes on the next socket", async () => {
    await start();
    const work = job("steps 60", 10);
    await peer.grant([work]);
    await peer.until(() => peer.progress.length > 1, "progress");
    peer.cut();
    const complete = await peer.until(() => peer.of("complete")[0], "complete");
    const hellos = peer.of("hello");
    expect(hellos.map(({ leases }) => leases)).toEqual([[], [{ execution: work.execution, epoch: 1 }]]);
    expect(hellos[1]?.instance).toBe(hellos[0]?.instance);
    expect(complete.epoch).toBe(1);
    expect(peer.uploads.length).toBe(1);
  });

  test("complete is said again on every new socket until it is committed", async () => {
    peer.commits = false;
    await start();
    const work = job("steps 1");
    await peer.grant([work]);
    await peer.until(() => peer.of("complete").length === 1, "the first complete");
    peer.cut();
    await peer.until(() => peer.of("complete").length === 2, "the second complete");
    peer.commits = true;
    peer.cut();
    await peer.until(() => peer.of("complete").length === 3, "the third complete");
    await peer.until(() => peer.of("heartbeat").at(-1)?.leases.length === 0, "the end of the lease");
    peer.cut();
    await peer.until(() => peer.of("hello").length === 4, "the fourth hello");
    expect(peer.of("hello")[3]?.leases).toEqual([]);
    expect(peer.of("complete").length).toBe(3);
    expect(peer.uploads.length).toBe(1);
  });

  test("an abandoned lease stops between steps and uploads nothing", async () => {
    const { metrics } = await start();
    peer.verdict = () => "abandon";
    await peer.grant([job("steps 50", 100)]);
    await peer.until(() => peer.progress.length > 1, "progress");
    const readies = peer.of("ready").length;
    peer.cut();
    await peer.until(() => peer.of("ready").slice(readies).at(-1)?.n === 1, "a free runner");
    expect(await outcomes(metrics)).toEqual({ canceled: 1 });
    expect(peer.uploads).toEqual([]);
  });

  test("a half-open socket is noticed by its missing pongs", async () => {
    peer.autoPong = false;
    await start();
    await peer.until(() => peer.connections >= 2, "a second socket");
  });

  test("a refused token is said clearly and tried again slowly", async () => {
    peer.upgradeStatus = 403;
    const { runner, lines } = runnerFor(peer);
    stop.push(() => runner.drain(0));
    await runner.start();
    await peer.until(() => peer.upgrades === 1, "an upgrade");
    await delay(1000);
    expect(peer.upgrades).toBe(1);
    expect(runner.problems()).toEqual(["the edge refuses the runner token"]);
    expect(lines.join("")).toContain("it is unknown or revoked");
  });
});

describe("the end of a lease", () => {
  test("cancel stops between steps, and the runner takes the next grant", async () => {
    await start();
    const work = job("steps 50", 100);
    await peer.grant([work]);
    await peer.until(() => peer.progress.length > 1, "progress");
    peer.send({ v: PROTOCOL_VERSION, type: "cancel", leases: [{ execution: work.execution, epoch: 1 }] });
    await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a free runner");
    expect(peer.uploads).toEqual([]);
    const next = job("steps 1");
    await peer.grant([next]);
    expect((await peer.until(() => peer.of("complete")[0], "complete")).execution).toBe(next.execution);
  });

  test("an upload refused by its epoch ends the lease without complete", async () => {
    const { metrics } = await start();
    peer.uploadStatus = () => 409;
    await peer.grant([job("steps 1")]);
    await peer.until(() => peer.uploads.length === 1, "the upload");
    await expect.poll(() => outcomes(metrics), { timeout: 15_000 }).toEqual({ stale: 1 });
    expect(peer.of("complete")).toEqual([]);
  });

  test("refused ends the lease", async () => {
    peer.commits = false;
    const { metrics } = await start();
    const work = job("steps 1");
    await peer.grant([work]);
    await peer.until(() => peer.of("complete")[0], "complete");
    peer.send({ v: PROTOCOL_VERSION, type: "refused", execution: work.execution, epoch: 1, reason: "stale_epoch" });
    await expect.poll(() => outcomes(metrics), { timeout: 15_000 }).toEqual({ refused: 1 });
  });

  test("a later epoch of the same execution replaces the held one", async () => {
    await start();
    const work = job("steps 50", 100);
    await peer.grant([work]);
    await peer.until(() => peer.progress.length > 0, "progress");
    const again = { ...work, epoch: 2, request: pictureRequest({ prompt: "steps 1" }) };
    await peer.grant([again]);
    const complete = await peer.until(() => peer.of("complete")[0], "complete");
    expect(complete).toMatchObject({ execution: work.execution, epoch: 2 });
    expect(peer.uploads.length).toBe(1);
  });

  test("a model that the runner doesn't hold fails for good", async () => {
    await start();
    const model = `sha256:${"1".repeat(64)}`;
    await peer.grant([{ execution: newExecution(), epoch: 1, request: pictureRequest({ model }) }]);
    const fail = await peer.until(() => peer.of("fail")[0], "fail");
    expect(fail).toMatchObject({ code: "model_unavailable", retryable: false });
  });
});

describe("a model thread that is lost", () => {
  test.each(["hang", "crash", "exit"])("%s: fails as retryable while heartbeats go on, and a new thread computes", async what => {
    const { metrics } = await start({ ATELIER_WATCHDOG_MS: "700" });
    await peer.grant([job(what)]);
    await peer.until(() => peer.of("accept")[0], "accept");
    const before = peer.of("heartbeat").length;
    const fail = await peer.until(() => peer.of("fail")[0], "fail");
    expect(fail).toMatchObject({ code: "runner_failed", retryable: true });
    if (what === "hang") expect(peer.of("heartbeat").length - before).toBeGreaterThanOrEqual(3);
    await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a free runner");
    await peer.grant([job("steps 1")]);
    await peer.until(() => peer.of("complete")[0], "complete");
    expect((await metrics.threadRestarts.get()).values.map(({ value }) => value)).toEqual([1]);
  });
});

describe("batches", () => {
  test("members end one by one: a bad one fails for good, a canceled one is not uploaded, the others complete", async () => {
    await start();
    const works = [job("steps 5"), job("fail"), job("steps 60", 10), job("steps 5")];
    await peer.grant(works);
    await peer.until(() => peer.of("fail")[0], "fail");
    peer.send({ v: PROTOCOL_VERSION, type: "cancel", leases: [{ execution: works[2]!.execution, epoch: 1 }] });
    await peer.until(() => peer.of("complete").length === 2, "two completes");
    await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a free runner");
    expect(peer.of("complete").map(({ execution }) => execution)).toEqual([works[0]!.execution, works[3]!.execution]);
    expect(peer.of("fail").map(({ execution, retryable }) => [execution, retryable])).toEqual([[works[1]!.execution, false]]);
    expect(peer.uploads.length).toBe(2);
  });

  test("a batch that is granted twice is accepted twice and computed once", async () => {
    await start();
    const works = [job("steps 20"), job("steps 20")];
    for (let i = 0; i < 2; i++) await peer.grant(works);
    await peer.until(() => peer.of("complete").length === 2, "two completes");
    await peer.until(() => peer.of("heartbeat").at(-1)?.leases.length === 0, "a heartbeat without leases");
    expect([peer.of("accept").map(({ leases }) => leases.length), peer.uploads.length]).toEqual([[2, 2], 2]);
  });

  test("a lost thread fails every unfinished member as retryable", async () => {
    await start();
    const works = [job("steps 1"), job("crash"), job("steps 1")];
    await peer.grant(works);
    await peer.until(() => peer.of("fail").length === 2, "two failures");
    expect(peer.of("fail").every(({ retryable }) => retryable)).toBe(true);
    expect((await peer.until(() => peer.of("complete")[0], "complete")).execution).toBe(works[0]!.execution);
  });

  test("says how many it takes at once, and what lies in its memory", async () => {
    await start({ ATELIER_MAX_BATCH: "7" });
    expect(peer.of("hello").at(-1)?.max_batch).toBe(7);
    expect(peer.of("ready").at(-1)?.resident).toEqual([]);
    await peer.grant([job("steps 1")]);
    const { model } = pictureRequest();
    await peer.until(() => peer.of("ready").at(-1)?.n === 1 && peer.of("ready").at(-1)?.resident.includes(model), "the resident model");
  });
});

describe("inputs", () => {
  let cacheDir: string;
  beforeEach(() => {
    cacheDir = mkdtempSync(join(tmpdir(), "atelier-runner-"));
    stop.push(async () => rmSync(cacheDir, { recursive: true }));
  });

  function reading(content: string) {
    const input = inputOf(content);
    peer.objects.set(input.key, content);
    return { ...job("read"), inputs: [input] };
  }

  test("are fetched before anything is computed, also over a cut socket and a broken download", async () => {
    await start({ ATELIER_CACHE_DIR: cacheDir });
    const work = reading("a source picture");
    peer.onRead = (response, content, read) => {
      if (read > 1) return false;
      response.writeHead(200, { "content-length": content.length });
      response.write(content.slice(0, 5), () => {
        peer.cut();
        response.destroy();
      });
      return true;
    };
    await peer.grant([work]);
    await peer.until(() => peer.of("complete")[0], "complete");
    expect([peer.uploads[0]?.body.toString(), peer.connections]).toEqual(["a source picture", 2]);
    expect(peer.of("hello").at(-1)?.leases).toEqual([{ execution: work.execution, epoch: 1 }]);
  });

  test("one that is gone fails its execution for good, and the batch's others are computed", async () => {
    await start({ ATELIER_CACHE_DIR: cacheDir });
    const [good, bad] = [reading("here"), reading("gone")];
    peer.objects.delete(bad.inputs[0]!.key);
    await peer.grant([good, bad]);
    const fail = await peer.until(() => peer.of("fail")[0], "fail");
    expect(fail).toMatchObject({ execution: bad.execution, code: "input_gone", retryable: false });
    expect((await peer.until(() => peer.of("complete")[0], "complete")).execution).toBe(good.execution);
  });

  test("a lease that the edge calls over when it reads is dropped", async () => {
    const { metrics } = await start({ ATELIER_CACHE_DIR: cacheDir });
    peer.onRead = response => {
      response.writeHead(409).end();
      return true;
    };
    await peer.grant([reading("a source picture")]);
    await expect.poll(() => outcomes(metrics), { timeout: 15_000 }).toEqual({ stale: 1 });
    expect(peer.of("fail")).toEqual([]);
  });

  test("a canceled lease stops reading", async () => {
    await start({ ATELIER_CACHE_DIR: cacheDir });
    const work = reading("a source picture");
    peer.onRead = response => {
      response.writeHead(200).flushHeaders();
      return true;
    };
    await peer.grant([work]);
    await peer.until(() => peer.reads.length === 1, "a read");
    peer.send({ v: PROTOCOL_VERSION, type: "cancel", leases: [{ execution: work.execution, epoch: 1 }] });
    await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a free runner");
    expect([peer.uploads, peer.of("fail")]).toEqual([[], []]);
  });
});

test("a model that is added to the registry is announced on a new socket, and its leases are kept", async () => {
  const folder = mkdtempSync(join(tmpdir(), "atelier-runner-"));
  stop.push(async () => rmSync(folder, { recursive: true }));
  await start({ ATELIER_MODEL_REGISTRY: join(folder, "models.json") });
  const work = job("steps 3000", 1);
  await peer.grant([work]);
  await peer.until(() => peer.of("accept")[0], "accept");
  const hash = `sha256:${"5".repeat(64)}`;
  writeFileSync(join(folder, "models.json"), JSON.stringify([{ hash, path: "/models/added" }]));
  const hello = await peer.until(() => peer.of("hello")[1], "another hello");
  expect(hello.models).toEqual([pictureRequest().model, hash]);
  expect(hello.leases).toEqual([{ execution: work.execution, epoch: 1 }]);
  await peer.until(() => peer.of("complete")[0], "complete");
});

describe("draining", () => {
  test("finishes what runs, hands back what waits, takes nothing new", async () => {
    const { runner } = await start();
    const works = [job("steps 50", 6), job("steps 50", 6)];
    for (const work of works) await peer.grant([work]);
    await peer.until(() => peer.progress.length > 0, "progress");
    const drained = runner.drain(10_000);
    const release = await peer.until(() => peer.of("release")[0], "release");
    expect(release.leases).toEqual([{ execution: works[1]?.execution, epoch: 1 }]);
    expect(peer.of("ready").at(-1)?.n).toBe(0);
    const late = job("steps 1");
    await peer.grant([late]);
    await peer.until(() => peer.of("release")[1]?.leases[0]?.execution === late.execution, "release of the late grant");
    expect(await drained).toBe(true);
    expect(peer.of("complete").map(({ execution }) => execution)).toEqual([works[0]?.execution]);
  });

  test("hands back what runs when the grace is over", async () => {
    const { runner, metrics } = await start();
    const work = job("steps 100", 100);
    await peer.grant([work]);
    await peer.until(() => peer.progress.length > 0, "progress");
    expect(await runner.drain(200)).toBe(true);
    expect(peer.of("release").at(-1)?.leases).toEqual([{ execution: work.execution, epoch: 1 }]);
    expect([peer.uploads.length, peer.of("fail").length]).toEqual([0, 0]);
    expect(await outcomes(metrics)).toEqual({ released: 1 });
  });
});

test("no token, prompt, grant or capability stands in any log line", async () => {
  const { lines } = await start();
  const prompt = "steps 5 canary-7f3a";
  await peer.grant([job(prompt)]);
  await peer.until(() => peer.of("complete")[0], "complete");
  await peer.grant([job("fail canary-7f3a")]);
  await peer.until(() => peer.of("fail")[0], "fail");
  await peer.grant([job("steps 5 canary-7f3a")], { key: newKey("other") });
  await peer.until(() => peer.of("reject")[0], "reject");
  const log = lines.join("");
  expect(log).toContain("computed");
  for (const secret of ["canary-7f3a", "rnr_", "result.exe_", "progress.exe_", "eyJ"]) expect(log).not.toContain(secret);
});
