/** The runner as its own process with a real model, against an edge that speaks the protocol. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import sharp from "sharp";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { PROTOCOL_VERSION } from "../../../shared/engine.ts";
import { resultSchema } from "../../../shared/protocol.ts";
import { EdgePeer, newExecution, pictureRequest, TOKEN } from "./edge-peer.ts";

const main = fileURLToPath(new URL("../../../gpu-runner/main.ts", import.meta.url));
const model = fileURLToPath(new URL("../../goldens/base/models/sd15", import.meta.url));

let peer: EdgePeer;
let folder: string;
const children: ChildProcess[] = [];

beforeEach(async () => {
  peer = await EdgePeer.start();
  folder = mkdtempSync(join(tmpdir(), "atelier-runner-"));
});
afterEach(async () => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  await peer.close();
  rmSync(folder, { recursive: true, force: true });
});

function start(environment: Record<string, string> = {}, shell?: string) {
  const env = {
    PATH: process.env.PATH,
    ATELIER_EDGE_URL: peer.url.href,
    ATELIER_RUNNER_TOKEN: TOKEN,
    ATELIER_GRANT_KEYS: peer.jwks,
    ATELIER_MODELS: model,
    ATELIER_CACHE_DIR: join(folder, "cache"),
    ATELIER_HTTP_PORT: "0",
    ATELIER_THREADS: "1",
    ...environment,
  };
  const child = shell
    ? spawn("sh", ["-c", `${shell}; exec "$0" "$1"`, process.execPath, main], { env })
    : spawn(process.execPath, [main], { env });
  children.push(child);
  const output = { out: "", err: "" };
  child.stdout.on("data", chunk => {
    output.out += chunk;
  });
  child.stderr.on("data", chunk => {
    output.err += chunk;
  });
  const exit = new Promise<{ code: number | null; signal: string | null }>(resolve =>
    child.on("exit", (code, signal) => resolve({ code, signal })),
  );
  const lines = () =>
    output.out
      .split("\n")
      .filter(line => line)
      .map(line => JSON.parse(line) as Record<string, unknown>);
  const url = () =>
    peer
      .until(() => lines().find(line => line.health_port), "the health port", 30_000)
      .then(line => `http://127.0.0.1:${line.health_port}`);
  return { child, output, exit, lines, url };
}

async function connected() {
  await peer.until(() => peer.of("ready").at(-1), "ready", 30_000);
  return peer.of("hello").at(-1)!;
}

function work(hash: string, changes = {}) {
  const request = pictureRequest({ model: hash, prompt: "canary-55d1 in a field", width: 64, height: 64, steps: 8, ...changes });
  return { execution: newExecution(), epoch: 1, request };
}
/** Some seconds of work. */
const long = { width: 256, height: 256, steps: 400 };

test("loads the model, says what it holds, and makes a picture of it while heartbeats go on", async () => {
  const runner = start();
  const { models } = await connected();
  const url = await runner.url();
  expect((await fetch(`${url}/readyz`)).status).toBe(200);
  const task = work(models[0]!, { format: "webp", steps: 30 });
  await peer.grant([task]);
  const { result } = await peer.until(() => peer.of("complete")[0], "complete", 30_000);
  const [upload] = peer.uploads;
  expect(result).toEqual({
    sha256: createHash("sha256").update(upload!.body).digest("hex"),
    bytes: upload!.body.byteLength,
    width: 64,
    height: 64,
  });
  expect(await sharp(upload!.body).metadata()).toMatchObject({ format: "webp", width: 64, height: 64 });
  expect(peer.progress.at(-1)?.body).toMatchObject({ steps: 30 });
  const metrics = await (await fetch(`${url}/metrics`)).text();
  expect(metrics).toMatch(/atelier_runner_executions_total\{outcome="committed"\} 1\n/);
  const idle = Number(/^process_resident_memory_bytes (\d+)/m.exec(metrics)?.[1]);
  expect(idle).toBeLessThan(600e6);
  runner.child.kill("SIGTERM");
  expect(await runner.exit).toEqual({ code: 0, signal: null });
  const computed = runner.lines().find(line => line.message === "computed");
  expect(computed).toMatchObject({ level: "info", execution: task.execution, epoch: 1, request_id: expect.stringMatching(/^req_/) });
  for (const secret of ["canary-55d1", TOKEN, "eyJ"]) expect(runner.output.out + runner.output.err).not.toContain(secret);
});

test("the same request gives the same bytes again", async () => {
  start();
  const { models } = await connected();
  await peer.grant([work(models[0]!)]);
  await peer.until(() => peer.of("complete").length === 1, "complete", 30_000);
  await peer.grant([work(models[0]!), work(models[0]!, { seed: 8 })]);
  await peer.until(() => peer.of("complete").length === 3, "complete", 30_000);
  const [first, again, other] = peer.of("complete").map(({ result }) => resultSchema.parse(result).sha256);
  expect([again === first, other === first]).toEqual([true, false]);
});

test("a batch: equal to pictures made alone within rounding, one that can't be made fails by itself", async () => {
  start();
  const { models } = await connected();
  const prompts = ["a red cube", "a blue cube with a rather longer prompt", "", "a green cube"];
  const works = prompts.map((prompt, i) => work(models[0]!, { prompt, seed: 20 + i }));
  const bad = work(models[0]!, { clip_skip: 40 });
  await peer.grant([works[0]!, bad, ...works.slice(1)]);
  expect(await peer.until(() => peer.of("fail")[0], "fail", 30_000)).toMatchObject({
    ...{ execution: bad.execution, code: "unsupported", retryable: false },
  });
  await peer.until(() => peer.of("complete").length === 4, "four completes", 60_000);
  await peer.grant(works.map(each => ({ ...each, epoch: 2 })));
  await peer.until(() => peer.of("complete").length === 8, "four more", 60_000);
  const pixels = await Promise.all(peer.uploads.map(({ body }) => sharp(body).raw().toBuffer()));
  const picture = (i: number, epoch: number) =>
    pixels[peer.uploads.findIndex(({ path }) => path.endsWith(`${works[i]!.execution}/${epoch}/result`))]!;
  for (const i of prompts.keys()) {
    const [alone, together] = [picture(i, 1), picture(i, 2)];
    expect(Math.max(...alone.map((value, at) => Math.abs(value - together[at]!)))).toBeLessThanOrEqual(1);
    expect(together.equals(picture((i + 1) % prompts.length, 2))).toBe(false);
  }
});

test("several models: all are announced, each is loaded when it is first used, and the budget decides which stay", async () => {
  const second = join(folder, "second");
  cpSync(model, second, { recursive: true });
  const config = join(second, "scheduler", "scheduler_config.json");
  writeFileSync(config, JSON.stringify({ ...JSON.parse(readFileSync(config, "utf8")), beta_end: 0.0121 }));
  const runner = start({ ATELIER_MODELS: `${model},${join(folder, "nowhere")},${second}`, ATELIER_MEMORY_BUDGET: "1" });
  const { models } = await connected();
  expect(new Set(models).size).toBe(2);
  expect(runner.lines().find(line => line.message === "a model can't be used")).toMatchObject({ path: join(folder, "nowhere") });
  expect(peer.of("ready").at(-1)?.resident).toEqual([models[0]]);
  await peer.grant([work(models[1]!)]);
  await peer.until(() => peer.of("complete").length === 1, "complete", 30_000);
  await peer.until(() => String(peer.of("ready").at(-1)?.resident) === models[1], "the second model alone");
  await peer.grant([work(models[0]!)]);
  await peer.until(() => peer.of("complete").length === 2, "complete", 30_000);
  expect(new Set(peer.of("complete").map(({ result }) => resultSchema.parse(result).sha256)).size).toBe(2);
});

test("a registered model that can't be loaded fails its executions, and the others go on", async () => {
  const registry = join(folder, "models.json");
  const broken = `sha256:${"b".repeat(64)}`;
  writeFileSync(registry, JSON.stringify([{ hash: broken, path: model }]));
  start({ ATELIER_MODEL_REGISTRY: registry });
  const { models } = await connected();
  expect(models[1]).toBe(broken);
  await peer.grant([work(broken)]);
  expect(await peer.until(() => peer.of("fail")[0], "fail", 30_000)).toMatchObject({
    ...{ code: "model_unavailable", retryable: false, message: `The model ${broken} cannot be loaded.` },
  });
  await peer.grant([work(models[0]!)]);
  await peer.until(() => peer.of("complete")[0], "complete", 30_000);
});

test("a size that the model can't make fails for good, and the next picture is made", async () => {
  start();
  const { models } = await connected();
  await peer.grant([work(models[0]!, { width: 65 })]);
  const fail = await peer.until(() => peer.of("fail")[0], "fail");
  expect(fail).toMatchObject({ code: "unsupported", retryable: false, message: expect.stringContaining("width") });
  await peer.grant([work(models[0]!)]);
  await peer.until(() => peer.of("complete")[0], "complete", 30_000);
});

test("a process that stood still goes on with its lease", async () => {
  const runner = start();
  const { models } = await connected();
  const task = work(models[0]!, { ...long, steps: 40 });
  await peer.grant([task]);
  await peer.until(() => peer.progress.length > 1, "progress", 30_000);
  runner.child.kill("SIGSTOP");
  await delay(200);
  const heard = peer.of("heartbeat").length;
  await delay(600);
  expect(peer.of("heartbeat").length).toBe(heard);
  runner.child.kill("SIGCONT");
  expect((await peer.until(() => peer.of("complete")[0], "complete", 60_000)).execution).toBe(task.execution);
  expect(peer.uploads.length).toBe(1);
});

test("cancel stops the real model between steps", async () => {
  start();
  const { models } = await connected();
  const task = work(models[0]!, long);
  await peer.grant([task]);
  await peer.until(() => peer.progress.length > 1, "progress", 30_000);
  peer.send({ v: PROTOCOL_VERSION, type: "cancel", leases: [{ execution: task.execution, epoch: 1 }] });
  await peer.until(() => peer.of("ready").at(-1)?.n === 1, "a free runner");
  expect(peer.uploads).toEqual([]);
});

describe("signals", () => {
  test("SIGTERM lets a running picture finish, then exits with 0", async () => {
    const runner = start();
    const { models } = await connected();
    await peer.grant([work(models[0]!, { ...long, steps: 40 })]);
    await peer.until(() => peer.progress.length > 1, "progress", 30_000);
    runner.child.kill("SIGTERM");
    expect(await runner.exit).toEqual({ code: 0, signal: null });
    expect([peer.of("complete").length, peer.of("release").length]).toEqual([1, 0]);
  });

  test("SIGTERM hands the lease back when the grace is over", async () => {
    const runner = start({ ATELIER_DRAIN_MS: "300" });
    const { models } = await connected();
    const task = work(models[0]!, long);
    await peer.grant([task]);
    await peer.until(() => peer.progress.length > 1, "progress", 30_000);
    runner.child.kill("SIGTERM");
    expect(await runner.exit).toEqual({ code: 0, signal: null });
    expect(peer.of("release").at(-1)?.leases).toEqual([{ execution: task.execution, epoch: 1 }]);
    expect(peer.uploads).toEqual([]);
  });

  test("SIGTERM while the models are being loaded exits with 0", async () => {
    const runner = start();
    await runner.url();
    runner.child.kill("SIGTERM");
    expect(await runner.exit).toEqual({ code: 0, signal: null });
    expect(peer.upgrades).toBe(0);
  });

  test("a second signal ends it at once", async () => {
    const runner = start();
    const { models } = await connected();
    await peer.grant([work(models[0]!, long)]);
    await peer.until(() => peer.progress.length > 1, "progress", 30_000);
    runner.child.kill("SIGINT");
    await peer.until(() => peer.of("ready").at(-1)?.n === 0 && runner.output.out.includes("draining"), "draining");
    const began = performance.now();
    runner.child.kill("SIGINT");
    expect(await runner.exit).toEqual({ code: null, signal: "SIGKILL" });
    expect(performance.now() - began).toBeLessThan(1000);
    expect(peer.uploads).toEqual([]);
  });
});

describe("what can't work ends with one sentence and code 1", () => {
  const cases: [string, () => Record<string, string>, RegExp][] = [
    [
      "no settings",
      () => ({ ATELIER_EDGE_URL: "", ATELIER_MODELS: "" }),
      /settings are not valid: ATELIER_EDGE_URL is not set; ATELIER_MODELS is not set/,
    ],
    ["no model folder", () => ({ ATELIER_MODELS: join(folder, "nowhere") }), /nowhere/],
    ["a truncated weight file", () => ({ ATELIER_MODELS: truncated() }), /safetensors/],
    ["a provider that isn't built", () => ({ ATELIER_PROVIDER: "cuda" }), /cuda/],
  ];
  test.each(cases)("%s", async (_, environment, sentence) => {
    const runner = start(environment());
    expect(await runner.exit).toEqual({ code: 1, signal: null });
    expect(runner.output.err).toMatch(/^atelier runner: [^\n]+\n$/);
    expect(runner.output.err).toMatch(sentence);
    expect(peer.upgrades).toBe(0);
  });

  test("a taken port", async () => {
    const taken = createServer();
    await new Promise<void>(resolve => taken.listen(0, "127.0.0.1", resolve));
    const address = taken.address();
    const port = address !== null && typeof address === "object" ? address.port : 0;
    const runner = start({ ATELIER_HTTP_PORT: String(port) });
    expect(await runner.exit).toEqual({ code: 1, signal: null });
    expect(runner.output.err).toContain(`127.0.0.1:${port}: the port is taken`);
    taken.close();
  });

  function truncated(): string {
    const copy = join(folder, "model");
    cpSync(model, copy, { recursive: true });
    const file = join(copy, "unet", "diffusion_pytorch_model.safetensors");
    truncateSync(file, readFileSync(file).byteLength - 100);
    return copy;
  }
});

describe("a full disk", () => {
  test("is said, makes the runner not ready, and is waited for: a file system without room", async context => {
    const cache = join(folder, "small");
    mkdirSync(cache);
    if (!mountTmpfs(cache)) return context.skip("a small tmpfs needs root");
    try {
      const filler = join(cache, "filler");
      fill(filler);
      const runner = start({ ATELIER_CACHE_DIR: cache });
      await expectNotReady(runner, /no space left/);
      rmSync(filler);
      await connected();
      expect((await fetch(`${await runner.url()}/readyz`)).status).toBe(200);
      runner.child.kill("SIGKILL");
      await runner.exit;
    } finally {
      execFileSync("umount", ["-l", cache]);
    }
  });

  test("also where a limit on file sizes stops the write", async () => {
    // The scratch folder is on the models' file system, so their copies are hard links and only the graph files are written.
    const runner = start({}, "ulimit -f 0");
    await expectNotReady(runner, /cache directory/);
    expect(runner.child.exitCode).toBeNull();
  });

  async function expectNotReady(runner: ReturnType<typeof start>, reason: RegExp) {
    const url = await runner.url();
    const problems = async () => ((await (await fetch(`${url}/readyz`)).json()) as { problems: string[] }).problems.join();
    await expect.poll(problems, { timeout: 20_000 }).toMatch(reason);
    expect((await fetch(`${url}/readyz`)).status).toBe(503);
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
    expect(runner.child.exitCode).toBeNull();
    expect(peer.upgrades).toBe(0);
  }

  function mountTmpfs(at: string): boolean {
    if (process.getuid?.() !== 0 || !existsSync("/proc/mounts")) return false;
    try {
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=32m", "tmpfs", at], { stdio: "ignore" });
      return true;
    } catch {
      return false;
    }
  }

  function fill(file: string): void {
    const piece = Buffer.alloc(1 << 16);
    try {
      for (;;) writeFileSync(file, piece, { flag: "a" });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    }
  }
});
