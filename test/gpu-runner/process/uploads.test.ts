import { createHash } from "node:crypto";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, expect, test } from "vitest";
import { type HeldLease, LeaseTable } from "../../../gpu-runner/leases.ts";
import { ProgressReporter } from "../../../gpu-runner/progress.ts";
import { UploadRefused, upload, uploadResult } from "../../../gpu-runner/uploads.ts";
import { newExecution, pictureRequest } from "./edge-peer.ts";

const servers: Server[] = [];
afterEach(() => {
  for (const server of servers.splice(0)) server.close().closeAllConnections();
});

/** A server that answers with these statuses in turn (the last one again and again; 0 cuts the connection), and what it was sent. */
async function serving(statuses: number[], delayMs = 0) {
  const received: { headers: NodeJS.Dict<string | string[]>; body: string }[] = [];
  let [running, most] = [0, 0];
  const server = createServer(async (request, response) => {
    most = Math.max(most, ++running);
    const body = String(Buffer.concat(await Array.fromAsync(request as AsyncIterable<Buffer>)));
    const status = statuses[Math.min(received.length, statuses.length - 1)]!;
    received.push({ headers: request.headers, body });
    await new Promise(resolve => setTimeout(resolve, delayMs));
    running--;
    if (status === 0) request.socket.destroy();
    else response.writeHead(status).end();
  });
  servers.push(server);
  await new Promise<void>(resolve => server.listen(0, "127.0.0.1", resolve));
  return { edgeUrl: new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`), received, most: () => most };
}

function lease(deadlineMs = 10_000): { table: LeaseTable; held: HeldLease } {
  const table = new LeaseTable();
  const attemptDeadline = Date.now() + deadlineMs;
  const granted = {
    execution: newExecution(),
    epoch: 3,
    requestId: "req_1",
    attemptDeadline,
    capabilities: { result: "r", progress: "p", checkpoint: null },
    inputs: [],
    adapters: [],
    kind: "picture" as const,
    request: pictureRequest(),
  };
  table.grant(granted, table.newBatch());
  return { table, held: table.all()[0]! };
}

const bytes = new TextEncoder().encode("a picture");
const sha256 = createHash("sha256").update(bytes).digest("hex");
const picture = { bytes, sha256, mediaType: "image/png", width: 8, height: 8 };
const options = { timeoutMs: 2000, backoff: { baseMs: 5, capMs: 20 } };

test("sends the file with its length and hash under its capability", async () => {
  const { edgeUrl, received } = await serving([201]);
  expect(await uploadResult(lease().held, picture, { edgeUrl, ...options })).toBe("uploaded");
  expect(received[0]?.body).toBe("a picture");
  expect(received[0]?.headers).toMatchObject({
    authorization: "Bearer r",
    "content-length": "9",
    "x-atelier-sha256": sha256,
    "content-type": "image/png",
  });
});

test.each([500, 503, 408, 429, 422, 0])("tries again after %i, and each attempt is a sign of life", async status => {
  const { edgeUrl, received } = await serving([status, status, 200]);
  const { held } = lease();
  const problems: string[] = [];
  expect(await uploadResult(held, picture, { edgeUrl, ...options, onRetry: problem => problems.push(problem) })).toBe("uploaded");
  expect([received.length, problems.length, held.activity]).toEqual([3, 2, 3]);
});

test.each([400, 401, 403, 413, 302])("gives up at once on %i", async status => {
  const { edgeUrl, received } = await serving([status]);
  await expect(uploadResult(lease().held, picture, { edgeUrl, ...options })).rejects.toThrow(UploadRefused);
  expect(received.length).toBe(1);
});

test("409 says that the lease is over", async () => {
  const { edgeUrl, received } = await serving([500, 409]);
  expect(await uploadResult(lease().held, picture, { edgeUrl, ...options })).toBe("stale");
  expect(received.length).toBe(2);
});

test("stops at the attempt's deadline", async () => {
  const { edgeUrl } = await serving([503]);
  await expect(uploadResult(lease(200).held, picture, { edgeUrl, ...options })).rejects.toThrow("before the attempt's deadline: HTTP 503");
});

test("stops when the lease ends", async () => {
  const { edgeUrl, received } = await serving([503]);
  const { table, held } = lease();
  const upload = uploadResult(held, picture, { edgeUrl, timeoutMs: 2000, backoff: { baseMs: 5000, capMs: 5000 } });
  setTimeout(() => table.end(held), 50);
  await expect(upload).rejects.toThrow();
  expect([held.ended.aborted, received.length]).toEqual([true, 1]);
});

test("progress: one report under way, the latest wins, and a preview isn't lost with the report that it came with", async () => {
  const { edgeUrl, received, most } = await serving([204, 500, 204], 40);
  const failures: string[] = [];
  const reporter = new ProgressReporter(lease().held, edgeUrl, problem => failures.push(problem));
  for (let step = 1; step <= 5; step++) reporter.report({ step, steps: 6, ...(step === 3 && { preview: "data:image/webp;base64,AA==" }) });
  await expect.poll(() => received.length, { timeout: 10_000 }).toBe(2);
  reporter.report({ step: 6, steps: 6, preview: `data:image/webp;base64,${"A".repeat(70_000)}` });
  await expect.poll(() => received.length, { timeout: 10_000 }).toBe(3);
  expect(received.map(({ body }) => JSON.parse(body))).toEqual([
    { step: 1, steps: 6 },
    { step: 5, steps: 6, preview: "data:image/webp;base64,AA==" },
    { step: 6, steps: 6 },
  ]);
  expect([most(), failures]).toEqual([1, ["HTTP 500"]]);
});

test("sends a file that is larger than a part in parts, each with its hash, and says so at the end", async () => {
  const whole = new Uint8Array(25).map((_, i) => i);
  const received: { method: string; url: string; body: string; sha256: string | undefined }[] = [];
  let refusals = 1;
  const server = createServer(async (request, response) => {
    const body = Buffer.concat(await Array.fromAsync(request as AsyncIterable<Buffer>));
    const url = new URL(request.url ?? "", "http://edge");
    received.push({
      method: request.method!,
      url: url.search,
      body: body.toString("hex"),
      sha256: request.headers["x-atelier-sha256"]?.toString(),
    });
    const part = url.searchParams.get("part");
    // The second part is damaged on its way once.
    if (part === "2" && refusals-- > 0) response.writeHead(422).end();
    else if (part) response.writeHead(201).end(JSON.stringify({ part: Number(part), etag: `etag ${part}` }));
    else response.writeHead(201).end(url.search === "" ? JSON.stringify({ upload_id: "an id" }) : undefined);
  });
  servers.push(server);
  await new Promise<void>(resolve => server.listen(0, "127.0.0.1", resolve));
  const edgeUrl = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  const hash = (data: Uint8Array) => createHash("sha256").update(data).digest("hex");
  const file = {
    key: "staging/x/1/a.bin",
    capability: "c",
    mediaType: "application/octet-stream",
    sha256: hash(whole),
    body: new Blob([whole]),
  };
  expect(await upload(lease().held, file, { edgeUrl, ...options, partBytes: 10 })).toBe("uploaded");
  const parts = [whole.slice(0, 10), whole.slice(10, 20), whole.slice(20)];
  const sent = (n: number) => ({
    method: "PUT",
    url: `?upload_id=an+id&part=${n}`,
    body: Buffer.from(parts[n - 1]!).toString("hex"),
    sha256: hash(parts[n - 1]!),
  });
  expect(received.slice(0, 5)).toEqual([{ method: "POST", url: "", body: "", sha256: hash(whole) }, sent(1), sent(2), sent(2), sent(3)]);
  expect(received[5]).toMatchObject({ method: "POST", url: "?upload_id=an+id" });
  expect(JSON.parse(Buffer.from(received[5]!.body, "hex").toString())).toEqual({
    bytes: 25,
    parts: [1, 2, 3].map(part => ({ part, etag: `etag ${part}` })),
  });
});
