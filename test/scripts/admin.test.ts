import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join, relative, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { inspectModel } from "../../gpu-runner/inspect.ts";
import { readModelRegistry } from "../../gpu-runner/model-registry.ts";
import { AdminClient, AdminError } from "../../scripts/admin-client.ts";
import { temporaryFolder } from "../gpu-runner/support/temporary.ts";
import { startHub } from "./fake-hub.ts";

/** An edge that answers as it is told, and remembers what it was asked. */
let server: Server;
let url: string;
let answer: { status: number; body?: unknown | (() => unknown) };
let asked: { method: string; path: string; token: string; body: string };

async function textOf(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  return Buffer.concat(parts).toString();
}

beforeAll(async () => {
  server = createServer(async (request, response) => {
    asked = {
      method: request.method ?? "",
      path: request.url ?? "",
      token: request.headers.authorization ?? "",
      body: await textOf(request),
    };
    response
      .writeHead(answer.status, { "content-type": "application/json" })
      .end(answer.body === undefined ? undefined : JSON.stringify(typeof answer.body === "function" ? answer.body() : answer.body));
  });
  await new Promise<void>(resolve => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(() => server.close());

async function run(...words: string[]): Promise<{ code: number; out: string; err: string }> {
  return runWith({}, ...words);
}

async function runWith(more: Record<string, string>, ...words: string[]): Promise<{ code: number; out: string; err: string }> {
  const env = { ...process.env, ATELIER_URL: url, ATELIER_ADMIN_TOKEN: "t0ken", ...more };
  const result = await promisify(execFile)(process.execPath, ["scripts/admin.ts", ...words], { env }).catch(
    (error: { code: number; stdout: string; stderr: string }) => error,
  );
  return { code: "code" in result ? result.code : 0, out: result.stdout, err: result.stderr };
}

describe("npm run key", () => {
  const id = "key_01JD0000000000000000000001";

  it("create prints the key once", async () => {
    answer = { status: 201, body: { id, tenant_id: "ten_01JD0000000000000000000002", key: "atl_local_x" } };
    const { code, out } = await run("key", "create", "--tenant", "acme", "--name", "server", "--scopes", "read");
    expect([code, out]).toEqual([0, `atl_local_x\n\nIts id is ${id}. The key is not stored: keep it now.\n`]);
    expect(asked).toMatchObject({ method: "POST", path: "/admin/v1/keys", token: "Bearer t0ken" });
    expect(JSON.parse(asked.body)).toEqual({ tenant: "acme", name: "server", scopes: ["read"] });
  });

  it("list prints a table, and None. where there is nothing", async () => {
    answer = {
      status: 200,
      body: { data: [{ id, tenant: "acme", name: "a", scopes: ["read", "write"], created_at: 0, revoked_at: 60_000 }] },
    };
    expect((await run("key", "list")).out).toBe(
      `${"id".padEnd(id.length)}  tenant  name  scopes      created           revoked\n${id}  acme    a     read,write  1970-01-01 00:00  1970-01-01 00:01\n`,
    );
    answer = { status: 200, body: { data: [] } };
    expect((await run("dead-letters")).out).toBe("None.\n");
  });

  it("revoke asks for the id, and says in one line what went wrong", async () => {
    answer = { status: 204 };
    expect(await run("key", "revoke", id)).toMatchObject({ code: 0, out: "Revoked.\n" });
    expect(asked).toMatchObject({ method: "DELETE", path: `/admin/v1/keys/${id}` });
    answer = {
      status: 404,
      body: { type: "x", title: "There is no such resource.", status: 404, code: "not_found", detail: `There is no key ${id}.` },
    };
    expect(await run("key", "revoke", id)).toEqual({ code: 1, out: "", err: `There is no key ${id}.\n` });
  });

  it.each([
    [["key", "create"], "key create needs --tenant"],
    [["key", "revoke"], "key revoke needs the key's id"],
    [["model", "add"], "model add needs the model's folder"],
    [["keys"], "Usage:"],
    [["key", "list", "--loud"], "Unknown option"],
  ])("%j is misuse, said in words", async (words, sentence) => {
    const { code, err } = await run(...words);
    expect(code).toBe(1);
    expect(err).toContain(sentence);
    expect(err).not.toContain("    at ");
  });
});

describe("npm run model", () => {
  /** The fake edge gives back what it is given. */
  const echo = () => ({ ...JSON.parse(asked.body), name: asked.path.split("/").at(-1) });

  it("add tells the edge and this machine's runners, list shows where it lies, remove takes it from both", async () => {
    const ATELIER_STATE = temporaryFolder();
    const { hash } = await inspectModel("models/pocket").then(({ description }) => description);
    answer = { status: 200, body: echo };
    const added = await runWith({ ATELIER_STATE }, "model", "add", "models/pocket", "--name", "mine");
    expect(added.out).toBe(`mine (${hash}) is served by the pool default. Runners elsewhere need the same files.\n`);
    expect(asked).toMatchObject({ method: "PUT", path: "/admin/v1/models/mine" });
    const registry = join(ATELIER_STATE, "models.json");
    expect(readModelRegistry(registry)).toEqual([{ hash, path: resolve("models/pocket") }]);

    const manifest = echo();
    answer = { status: 200, body: { data: [manifest] } };
    expect((await runWith({ ATELIER_STATE }, "model", "list")).out).toContain(resolve("models/pocket"));
    answer = { status: 200, body: { data: [manifest, { ...manifest, name: "another-name" }] } };
    expect((await runWith({ ATELIER_STATE }, "model", "remove", "mine")).code).toBe(0);
    expect(readModelRegistry(registry)).toHaveLength(1);
    answer = { status: 200, body: { data: [manifest] } };
    expect((await runWith({ ATELIER_STATE }, "model", "remove", "mine")).out).toBe("Removed. Its files are where they were.\n");
    expect(readModelRegistry(registry)).toEqual([]);
  });

  it("inspect downloads what is on the hub, and needs no edge", async () => {
    const golden = "test/goldens/base/models/sd15";
    const names = readdirSync(golden, { recursive: true, withFileTypes: true }).filter(entry => entry.isFile());
    const files = Object.fromEntries(
      names.map(({ parentPath, name }) => {
        const path = join(parentPath, name);
        return [relative(golden, path), readFileSync(path)];
      }),
    );
    const hub = await startHub(files, [1000]);
    const { out, err, code } = await runWith({ ATELIER_STATE: temporaryFolder(), HF_ENDPOINT: hub.url }, "model", "inspect", "some/model");
    expect([code, err.includes("Error")]).toEqual([0, false]);
    expect(out).toContain("family sd1, epsilon");
    expect(out).toMatch(/unet +\d+\.\d k +F16 +\d+ keys used/);
    expect(out.trimEnd().endsWith("It can be loaded.")).toBe(true);
  });
});

describe("AdminClient", () => {
  it("tells field errors, foreign answers and an absent edge in one sentence", async () => {
    const client = new AdminClient(`${url}/`, "t");
    const errors = [{ field: "tenant", expected: "a name", got: '""' }];
    answer = { status: 400, body: { type: "x", title: "The request is not valid.", status: 400, code: "invalid_request", errors } };
    await expect(client.createKey({ tenant: "", name: "" })).rejects.toThrow(
      new AdminError('The request is not valid. tenant: expected a name, got "".'),
    );
    answer = { status: 502 };
    await expect(client.listKeys()).rejects.toThrow(new AdminError("The edge answered 502 Bad Gateway."));
    await expect(new AdminClient("http://127.0.0.1:1", "t").listKeys()).rejects.toThrow(
      new AdminError("The edge at http://127.0.0.1:1 cannot be reached: is it running?"),
    );
  });
});
