import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { InputFailed, InputStore, type InputStoreOptions } from "../../../gpu-runner/inputs.ts";
import { type HeldLease, LeaseTable } from "../../../gpu-runner/leases.ts";
import { EdgePeer, type GrantedInput, inputOf, newExecution, pictureRequest, sha256 } from "./edge-peer.ts";

let peer: EdgePeer;
let cacheDir: string;
beforeEach(async () => {
  peer = await EdgePeer.start();
  cacheDir = mkdtempSync(join(tmpdir(), "atelier-inputs-"));
});
afterEach(async () => {
  await peer.close();
  rmSync(cacheDir, { recursive: true, force: true });
});

function newStore(options: Partial<InputStoreOptions> = {}) {
  const problems: string[] = [];
  const onRetry = (problem: string) => void problems.push(problem);
  return {
    problems,
    store: new InputStore({ edgeUrl: peer.url, cacheDir, budget: 1e9, backoff: { baseMs: 2, capMs: 10 }, onRetry, ...options }),
  };
}

function leaseOf(inputs: GrantedInput[], adapters: HeldLease["adapters"] = [], deadlineMs = 10_000) {
  const table = new LeaseTable();
  const granted = { execution: newExecution(), epoch: 1, requestId: "req_1", attemptDeadline: Date.now() + deadlineMs };
  const capabilities = { result: "r", progress: "p", checkpoint: null };
  table.grant({ ...granted, capabilities, inputs, adapters, kind: "picture", request: pictureRequest() }, table.newBatch());
  return { table, lease: table.all()[0]! };
}

function serve(content: string): GrantedInput {
  const input = inputOf(content);
  peer.objects.set(input.key, content);
  return input;
}

function adapterOf(...files: { path: string; content: string }[]): HeldLease["adapters"][number] {
  const [first, ...rest] = files.map(({ path, content }) => ({ path, sha256: sha256(content), bytes: content.length }));
  return { hash: `sha256:${sha256(files.map(({ content }) => content).join())}`, files: [first!, ...rest] };
}

/** Everything under the store's folders. */
function stored(): string[] {
  return ["inputs", "adapters"].flatMap(name => {
    const folder = join(cacheDir, name);
    if (!existsSync(folder)) return [];
    return readdirSync(folder, { recursive: true, withFileTypes: true }).flatMap(entry => (entry.isFile() ? [entry.name] : []));
  });
}

test("pictures and adapters are read under their capabilities, and lie where the pipeline finds them", async () => {
  const picture = serve("a picture");
  const [one, two] = [serve("weights one"), serve("weights two")];
  const single = adapterOf({ path: "lora.safetensors", content: "weights one" });
  const folder = adapterOf({ path: "lora.safetensors", content: "weights one" }, { path: "text/te.safetensors", content: "weights two" });
  const { lease } = leaseOf([picture, one, two], [single, folder]);
  const fetched = await newStore().store.fetch(lease);
  expect(Object.keys(fetched.files)).toEqual([picture.sha256]);
  expect(readFileSync(fetched.files[picture.sha256]!, "utf8")).toBe("a picture");
  expect(readFileSync(fetched.adapters[single.hash]!, "utf8")).toBe("weights one");
  expect(readFileSync(join(fetched.adapters[folder.hash]!, "text", "te.safetensors"), "utf8")).toBe("weights two");
  expect(peer.reads.map(({ token }) => token)).toEqual(expect.arrayContaining([picture, one, two].map(({ capability }) => capability)));
  expect(lease.activity).toBeGreaterThanOrEqual(4);
});

test("what is here with the right hash is not fetched again, by this process or another; what has changed is", async () => {
  const input = serve("a picture");
  const { store } = newStore();
  const path = (await store.fetch(leaseOf([input]).lease)).files[input.sha256]!;
  await store.fetch(leaseOf([input]).lease);
  await newStore().store.fetch(leaseOf([input]).lease);
  expect(peer.reads.length).toBe(1);
  writeFileSync(path, "b picture");
  for (const again of [store, newStore().store]) await again.fetch(leaseOf([input]).lease);
  expect([peer.reads.length, readFileSync(path, "utf8")]).toEqual([2, "a picture"]);
});

test("a file that several executions of a batch need is fetched once", async () => {
  const input = serve("a picture");
  const { store } = newStore();
  await Promise.all(Array.from({ length: 4 }, () => store.fetch(leaseOf([input]).lease)));
  expect(peer.reads.length).toBe(1);
});

test("a connection that breaks off is taken up where it was", async () => {
  const content = "0123456789".repeat(50_000);
  const input = serve(content);
  peer.onRead = (response, content, read) => {
    if (read > 1) return false;
    response.writeHead(200, { "content-length": content.length });
    response.write(content.slice(0, 200_000), () => setTimeout(() => response.destroy(), 50));
    return true;
  };
  const { store, problems } = newStore();
  const { files } = await store.fetch(leaseOf([input]).lease);
  expect(readFileSync(files[input.sha256]!, "utf8")).toBe(content);
  expect([peer.reads.length, problems.length]).toEqual([2, 1]);
  const from = Number(/^bytes=(\d+)-$/.exec(peer.reads[1]!.range!)?.[1]);
  expect(from).toBeGreaterThan(0);
  expect(from).toBeLessThanOrEqual(200_000);
});

test("an edge that answers a range with the whole file is read from its beginning", async () => {
  const content = "0123456789".repeat(50_000);
  const input = serve(content);
  peer.onRead = (response, content, read) => {
    response.writeHead(200, { "content-length": content.length });
    if (read > 1) response.end(content);
    else response.write(content.slice(0, 200_000), () => setTimeout(() => response.destroy(), 50));
    return true;
  };
  const { files } = await newStore().store.fetch(leaseOf([input]).lease);
  expect(readFileSync(files[input.sha256]!, "utf8")).toBe(content);
});

test("a download that arrives damaged is asked for again, and given up when it always is", async () => {
  const input = serve("a picture");
  peer.onRead = (response, _, read) => {
    if (read !== 2) response.end("A PICTURE");
    return read !== 2;
  };
  const { store, problems } = newStore();
  await store.fetch(leaseOf([input]).lease);
  expect(problems).toEqual(["damaged on the way"]);
  const other = serve("b picture");
  await expect(store.fetch(leaseOf([other]).lease)).rejects.toMatchObject({
    retryable: true,
    message: expect.stringContaining("damaged 3 times"),
  });
  expect(stored()).toEqual([input.sha256]);
});

test.each([
  ["more bytes than announced", 200, "a picture and more", true],
  ["gone", 404, "", false],
  ["refused", 403, "", true],
  ["the lease is over", 409, "", true],
  ["a redirect elsewhere", 302, "", true],
])("%s: given up at once, and nothing stays behind", async (_, status, body, retryable) => {
  const input = serve("a picture");
  peer.onRead = response => {
    response.writeHead(status, { location: "http://127.0.0.1:1/" }).end(body);
    return true;
  };
  const error = await newStore()
    .store.fetch(leaseOf([input]).lease)
    .catch((error: unknown) => error);
  expect(error).toBeInstanceOf(InputFailed);
  expect(error).toMatchObject({ retryable });
  expect([peer.reads.length, stored()]).toEqual([1, []]);
});

test("what does not come before the attempt's deadline is given up as retryable", async () => {
  const input = serve("a picture");
  peer.onRead = response => {
    response.writeHead(503).end();
    return true;
  };
  await expect(newStore().store.fetch(leaseOf([input], [], 100).lease)).rejects.toMatchObject({
    retryable: true,
    message: expect.stringContaining("HTTP 503"),
  });
});

test("a server that goes silent is asked again", async () => {
  const input = serve("a picture");
  peer.onRead = (response, _, read) => {
    if (read === 1) response.writeHead(200).flushHeaders();
    return read === 1;
  };
  const { store, problems } = newStore({ timeoutMs: 100 });
  await store.fetch(leaseOf([input]).lease);
  expect(problems.length).toBe(1);
});

test("stops when the lease ends, and leaves nothing behind", async () => {
  const input = serve("a picture");
  peer.onRead = response => {
    response.writeHead(200).flushHeaders();
    return true;
  };
  const { table, lease } = leaseOf([input]);
  const fetching = newStore().store.fetch(lease);
  await peer.until(() => peer.reads.length === 1, "the request");
  table.end(lease);
  await expect(fetching).rejects.toThrow();
  await expect.poll(stored).toEqual([]);
});

test("past its budget the least recently used files go, except those in use", async () => {
  const inputs = ["a", "b", "c", "d"].map(letter => serve(letter.repeat(100)));
  const { store } = newStore({ budget: 300 });
  const { lease: first } = leaseOf([inputs[0]!]);
  await store.fetch(first);
  for (const input of [inputs[1]!, inputs[2]!]) {
    const { table, lease } = leaseOf([input]);
    await store.fetch(lease);
    table.end(lease);
  }
  for (const [age, input] of [3, 2, 1].entries())
    utimesSync(join(cacheDir, "inputs", inputs[age]!.sha256), Date.now() / 1000 - input * 60, 0);
  await store.fetch(leaseOf([inputs[3]!]).lease);
  expect(stored().sort()).toEqual([inputs[0]!, inputs[2]!, inputs[3]!].map(({ sha256 }) => sha256).sort());
});

test("a full disk fails as retryable", async context => {
  mkdirSync(join(cacheDir, "inputs"));
  if (process.getuid?.() !== 0) return context.skip("a small tmpfs needs root");
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", join(cacheDir, "inputs")], { stdio: "ignore" });
  } catch {
    return context.skip("a small tmpfs needs root");
  }
  try {
    const input = serve("x".repeat(4_000_000));
    await expect(newStore().store.fetch(leaseOf([input]).lease)).rejects.toMatchObject({
      retryable: true,
      message: "The runner's disk is full.",
    });
    expect(stored()).toEqual([]);
  } finally {
    execFileSync("umount", ["-l", join(cacheDir, "inputs")]);
  }
});
