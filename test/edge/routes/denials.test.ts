import { beforeAll, describe, expect, it } from "vitest";
import { app } from "../../../edge/app.ts";
import { loraFile, uploadAdapter, uploadPicture } from "../files.ts";
import { call, callAdmin, compute, generateMiss, newKey, readGeneration, registerModel } from "../support.ts";

/** Every route of the API, from the app's own table, with ids of a generation that another tenant has made. */
interface Route {
  readonly method: string;
  readonly path: string;
}

const routes = app.openAPIRegistry.definitions.flatMap(definition =>
  definition.type === "route" ? [{ method: definition.route.method.toUpperCase(), path: definition.route.path }] : [],
);
const clientRoutes = routes.filter(({ path }) => path.startsWith("/v1/"));
const adminRoutes = routes.filter(({ path }) => path.startsWith("/admin/"));

let ids: Record<"generations" | "jobs" | "pictures" | "uploads" | "adapters" | "datasets" | "trainings", string>;
let writer: string;
let reader: string;

beforeAll(async () => {
  await registerModel();
  const owner = await newKey();
  const job = await generateMiss(owner.key, { seed: 1 });
  await compute(job.id);
  const generation = await readGeneration(owner.key, job.id);
  const upload = await uploadPicture(owner.key);
  const adapter = await uploadAdapter(owner.key, "style", loraFile());
  ids = {
    generations: generation.id,
    jobs: job.id,
    pictures: generation.pictures[0]!.id!,
    uploads: upload.id,
    adapters: adapter.id,
    ...(await trainingOf(owner.key, upload.id)),
  };
  writer = (await newKey()).key;
  reader = (await newKey(["read"])).key;
});

/** A dataset of one upload, and a training with it. */
async function trainingOf(key: string, image: string): Promise<{ datasets: string; trainings: string }> {
  const made = async (path: string, json: unknown) => (await (await call(path, { method: "POST", key, json })).json<{ id: string }>()).id;
  const datasets = await made("/v1/datasets", { name: "set", items: [{ image }] });
  const trainings = await made("/v1/trainings", { name: "t", model: "pocket", dataset: datasets, settings: { method: "lora" } });
  return { datasets, trainings };
}

function request({ method, path }: Route, key: string | undefined) {
  const [, , resource] = path.split("/");
  const id = Object.entries(ids).find(([name]) => name === resource)?.[1] ?? ids.generations;
  const filled = path
    .replace("{id}", id)
    .replace("{name}", "pocket")
    .replace("{pool}", "default")
    .replace("{sha256}", "0".repeat(64))
    .replace("{path}", "report.json");
  return call(filled, {
    method,
    ...(key !== undefined && { key }),
    ...((method === "POST" || method === "PUT") && !path.endsWith("cancel") && { json: { prompt: "x" } }),
    ...(method === "PATCH" && { json: { caption: "x" } }),
  });
}

it("knows the routes", () => {
  expect(clientRoutes.length).toBeGreaterThanOrEqual(19);
  expect(adminRoutes.length).toBeGreaterThanOrEqual(12);
});

describe.each(clientRoutes)("$method $path", route => {
  it("refuses requests without a key", async () => {
    const answer = await request(route, undefined);
    expect(answer.status).toBe(401);
    expect(answer.headers.get("www-authenticate")).toBe('Bearer realm="atelier"');
    expect(answer.headers.get("content-type")).toBe("application/problem+json");
    expect(await answer.json()).toMatchObject({ code: "unauthorized", instance: answer.headers.get("x-request-id") });
  });

  it("refuses keys that are mistyped, of another environment, unknown or no key", async () => {
    const mistyped = writer.replace(/.$/, last => (last === "0" ? "1" : "0"));
    const { key: revoked, id } = await newKey();
    expect((await callAdmin(`keys/${id}`, { method: "DELETE" })).status).toBe(204);
    for (const key of [mistyped, writer.replace("_local_", "_live_"), revoked, "x", writer.slice(0, -1), `${writer}0`])
      expect((await request(route, key)).status).toBe(401);
  });

  it("refuses a key whose scopes do not cover it", async () => {
    const answer = await request(route, reader);
    if (route.method === "GET") expect(answer.status).not.toBe(403);
    else expect([answer.status, (await answer.json<{ code: string }>()).code]).toEqual([403, "forbidden"]);
    if (!answer.bodyUsed) await answer.body?.cancel();
  });

  it.runIf(route.path.includes("{id}"))("knows nothing of another tenant's", async () => {
    const answer = await request(route, writer);
    expect(answer.status).toBe(404);
    expect(await answer.json()).toMatchObject({ code: "not_found", title: "There is no such resource." });
  });

  it.runIf(route.path.includes("{id}"))("answers malformed ids as unknown ones", async () => {
    expect((await request({ ...route, path: route.path.replace("{id}", "nothing") }, writer)).status).toBe(404);
  });
});

it("another tenant's generation is still there after all of this, and in no other list", async () => {
  expect(await (await call("/v1/generations", { key: writer })).json()).not.toMatchObject({
    data: expect.arrayContaining([expect.objectContaining({ id: ids.generations })]),
  });
});

describe.each(adminRoutes)("$method $path", route => {
  it("refuses everything but the admin token", async () => {
    for (const key of [undefined, writer, "x"]) expect((await request(route, key)).status).toBe(401);
  });
});

it("knows no other paths, and names the methods of those that it knows", async () => {
  expect((await call("/v1/nothing", { key: writer })).status).toBe(404);
  expect((await call("/nothing")).status).toBe(404);
  const wrong = await call("/v1/generations", { method: "PUT", key: writer, json: {} });
  expect([wrong.status, wrong.headers.get("allow")]).toEqual([405, "POST, GET"]);
  const getting = await call(`/v1/jobs/${ids.jobs}/cancel`, { key: writer });
  expect([getting.status, getting.headers.get("allow")]).toEqual([405, "POST"]);
});

it("lets pages of any origin ask, before it knows who asks", async () => {
  const answer = await call("/v1/generations", {
    method: "OPTIONS",
    headers: {
      origin: "https://app.example",
      "access-control-request-method": "POST",
      "access-control-request-headers": "authorization,idempotency-key",
    },
  });
  expect(answer.status).toBe(204);
  expect(answer.headers.get("access-control-allow-origin")).toBe("*");
  expect(answer.headers.get("access-control-allow-headers")).toContain("Idempotency-Key");
  expect(answer.headers.get("access-control-allow-credentials")).toBeNull();
});
