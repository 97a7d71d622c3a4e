import { env } from "cloudflare:workers";
import { beforeAll, describe, expect, it } from "vitest";
import { settings } from "../../../edge/env.ts";
import { sweepOrphans } from "../../../edge/orphans.ts";
import { settle } from "../../../edge/settle.ts";
import { adapterViewSchema } from "../../../shared/adapter-resource.ts";
import { sha256Hex } from "../../../shared/canonical.ts";
import { begunUploadSchema } from "../../../shared/file-parts.ts";
import { sameUlid } from "../../../shared/names.ts";
import { checkpointKey, runnerPaths, trainingStagingKey } from "../../../shared/protocol.ts";
import { publicJwk, verify } from "../../../shared/signing.ts";
import { hyperLoraNet, type TrainingResult, trainingMediaType, trainingRequestSchema } from "../../../shared/training.ts";
import { type DatasetView, datasetViewSchema, type TrainingView, trainingViewSchema } from "../../../shared/training-api.ts";
import { dispatcherOf, TestRunner, until } from "../dispatcher/support.ts";
import { loraFile, pngFile, safetensorsFile } from "../file-bytes.ts";
import { call, newKey, pocket, registerModel } from "../support.ts";

let key: string;
let tenant: string;
let dataset: DatasetView;
beforeAll(async () => {
  await registerModel();
  ({ key, tenant_id: tenant } = await newKey());
  const form = new FormData();
  form.set("name", "cat");
  form.append("file", new File([pngFile(64, 64, "cat")], "cat.png"));
  form.append("file", new File([pngFile(64, 64, "other cat")], "cat2.png"));
  form.set("captions", JSON.stringify({ "cat.png": "a sks cat", "cat2.png": "a sks cat" }));
  dataset = datasetViewSchema.parse(await (await call("/v1/datasets", { method: "POST", key, body: form })).json());
});

const asked = (changes: Record<string, unknown> = {}) => ({
  ...{ name: "my-cat", model: "pocket", dataset: dataset.id, settings: { method: "lora", rank: 2 }, steps: 20, seed: 7 },
  ...changes,
});
const post = (json: unknown, headers: Record<string, string> = {}) => call("/v1/trainings", { method: "POST", key, json, headers });
async function train(changes: Record<string, unknown> = {}): Promise<TrainingView> {
  const answer = await post(asked(changes));
  const body: unknown = await answer.json();
  expect([answer.status, body]).toEqual([202, expect.anything()]);
  return trainingViewSchema.parse(body);
}
async function read(id: string): Promise<TrainingView> {
  return trainingViewSchema.parse(await (await call(`/v1/trainings/${id}`, { key })).json());
}
const executionOf = ({ id }: TrainingView) => sameUlid(id, "execution");

const report: TrainingResult["report"] = {
  ...{
    method: "lora",
    dataset_hash: "0".repeat(64),
    steps: 20,
    ended_by: "steps",
    losses: [[1, 0.5]],
    validation: [[20, 0.4]],
    best_step: 20,
  },
  ...{ seconds: 12, seconds_per_step: 0.5, peak_memory_bytes: 1000, trained_parameters: 10, scores: null },
};

/** Stages files as a runner does, and gives the result that names them. */
async function stage(
  execution: string,
  epoch: number,
  files: Record<string, Uint8Array<ArrayBuffer>>,
  adapters: TrainingResult["adapters"] = [],
): Promise<TrainingResult> {
  const staged = Object.entries(files).map(async ([path, bytes]) => {
    const [sha256, media_type] = [await sha256Hex(bytes), trainingMediaType(path)];
    await env.BUCKET.put(trainingStagingKey(execution, epoch, path), bytes, { sha256, httpMetadata: { contentType: media_type } });
    return { path, sha256, bytes: bytes.length, media_type };
  });
  return { kind: "training", files: await Promise.all(staged), adapters, report };
}

describe("a training's acceptance", () => {
  it("fills in the defaults, and keeps what the runner is asked and may fetch", async () => {
    const view = await train({ budget: 90, optimizer: { learning_rate: 0.002 } });
    expect(view).toMatchObject({
      ...{ name: "my-cat", status: "queued", model: "pocket", dataset: dataset.id, report: null, estimate: null, adapters: [], files: [] },
      job: { kind: "training", training: view.id, progress: { step: 0, steps: 20 } },
      request: { settings: { method: "lora", rank: 2, start_from: null }, budget_ms: 90_000, seed: 7, optimizer: { learning_rate: 0.002 } },
    });
    const row = await env.DB.prepare("SELECT params, params_sha256, kind, batch_key, exclusive, inputs FROM executions WHERE id = ?")
      .bind(executionOf(view))
      .first<{ params: string; params_sha256: string; kind: string; batch_key: string; exclusive: number; inputs: string }>();
    expect(row).toMatchObject({ params_sha256: await sha256Hex(row!.params), kind: "training", batch_key: "", exclusive: 1 });
    const request = trainingRequestSchema.parse(JSON.parse(row!.params));
    expect(request.model).toBe(pocket.hash);
    expect(request.concepts).toEqual([{ token: "my-cat", class_prompt: null }]);
    expect(request.items.map(({ sha256, caption, width }) => [sha256, caption, width])).toEqual(
      dataset.items.map(({ sha256 }) => [sha256, "a sks cat", 64]),
    );
    expect(JSON.parse(row!.inputs)).toEqual({
      adapters: [],
      files: dataset.items.map(({ sha256, bytes }) => ({ sha256, bytes, key: `datasets/${tenant}/${sha256}` })),
    });
  });

  it("hands on whether activations are to be computed again", async () => {
    const training = await train({ gradient_checkpointing: true });
    expect(training.request.gradient_checkpointing).toBe(true);
    const row = await env.DB.prepare("SELECT params FROM executions WHERE id = ?").bind(executionOf(training)).first<{ params: string }>();
    expect(trainingRequestSchema.parse(JSON.parse(row!.params)).gradient_checkpointing).toBe(true);
  });

  it("grants an IP-Adapter's training the image encoder that it names, which no picture may use", async () => {
    const form = new FormData();
    form.set("name", "clip");
    const tensors = { "vision_model.embeddings.class_embedding": [8], "visual_projection.weight": [4, 8] };
    form.append("file", new File([safetensorsFile(tensors)], "clip/model.safetensors"));
    form.append("file", new File(['{"model_type":"clip_vision_model"}'], "clip/config.json"));
    const answer = await call("/v1/adapters", { method: "POST", key, body: form });
    const encoder = adapterViewSchema.parse(await answer.json());
    expect(encoder).toMatchObject({ status: "ready", kind: "ip-adapter", manifest: { layout: "image-encoder" } });
    const settings = { method: "ip-adapter", variant: "plus", image_encoder: "clip" };
    const training = await train({ settings });
    expect(training.request.settings).toMatchObject({ ...settings, tokens: 16, image_encoder: encoder.hash });
    const row = await env.DB.prepare("SELECT inputs FROM executions WHERE id = ?").bind(executionOf(training)).first<{ inputs: string }>();
    const { adapters, files } = JSON.parse(row!.inputs);
    expect(adapters).toEqual([{ hash: encoder.hash, files: encoder.files.map(({ path, sha256, bytes }) => ({ path, sha256, bytes })) }]);
    expect(files.map(({ sha256 }: { sha256: string }) => sha256)).toEqual(
      expect.arrayContaining(encoder.files.map(({ sha256 }) => sha256)),
    );
    const upload = await call("/v1/uploads", {
      method: "POST",
      key,
      body: pngFile(64, 64, "shown"),
      headers: { "content-type": "image/png" },
    });
    const { id } = await upload.json<{ id: string }>();
    const drawn = await call("/v1/generations", {
      method: "POST",
      key,
      json: { prompt: "a cat", adapters: [{ adapter: "clip", image: id }] },
    });
    const { errors } = await drawn.json<{ errors: { field: string; expected: string }[] }>();
    expect([drawn.status, errors]).toEqual([400, [expect.objectContaining({ field: "adapters.0.adapter" })]]);
    expect(errors[0]!.expected).toContain("image_encoder");
  });

  it("grants an evaluation the adapter that it scores, whose kind it knows, and takes no steps", async () => {
    const form = new FormData();
    form.set("name", "scored");
    form.append("file", new File([loraFile(1)], "scored.safetensors"));
    const adapter = adapterViewSchema.parse(await (await call("/v1/adapters", { method: "POST", key, body: form })).json());
    const settings = { method: "evaluation", adapter: "scored" };
    const training = await train({ settings, steps: undefined });
    expect(training.request).toMatchObject({ steps: 0, settings: { method: "evaluation", adapter: adapter.hash, kind: "lora" } });
    const row = await env.DB.prepare("SELECT inputs FROM executions WHERE id = ?").bind(executionOf(training)).first<{ inputs: string }>();
    expect(JSON.parse(row!.inputs).adapters.map(({ hash }: { hash: string }) => hash)).toEqual([adapter.hash]);
    for (const [changes, field] of [
      [{ steps: 5 }, "steps"],
      [{ steps: undefined, dry_run: true }, "dry_run"],
    ] as const) {
      const { errors } = await (await post(asked({ settings, ...changes }))).json<{ errors: { field: string }[] }>();
      expect(errors).toEqual([expect.objectContaining({ field })]);
    }
  });

  it("is once for an Idempotency-Key, and never joins another", async () => {
    const [one, again] = [await post(asked(), { "idempotency-key": "t-1" }), await post(asked(), { "idempotency-key": "t-1" })];
    const ids = [(await one.json<TrainingView>()).id, (await again.json<TrainingView>()).id];
    expect([ids[0] === ids[1], again.headers.get("idempotent-replayed")]).toEqual([true, "true"]);
    expect(executionOf(await train())).not.toBe(executionOf(await train()));
  });

  it.each([
    [{ model: "none" }, "model"],
    [{ dataset: `dst_${"0".repeat(26)}` }, "dataset"],
    [{ resolution: 68 }, "resolution"],
    [{ resolution: 1024 }, "resolution"],
    [{ settings: { method: "lora", rank: 0 } }, "settings.rank"],
    [{ settings: { method: "lora", start_from: "none" } }, "settings.start_from"],
    [{ settings: { method: "hyper-lora", start_from: `trn_${"0".repeat(26)}` } }, "settings.start_from"],
    [{ settings: { method: "ip-adapter" } }, "settings.image_encoder"],
    [{ settings: { method: "ip-adapter", image_encoder: "none" } }, "settings.image_encoder"],
    [{ settings: { method: "controlnet" } }, "dataset"],
    [{ settings: { method: "evaluation", adapter: "none" } }, "settings.adapter"],
    [{ settings: { method: "evaluation" } }, "settings.adapter"],
    [{ optimizer: { learning_rate: 2 } }, "optimizer.learning_rate"],
  ])("refuses %j with the field %s", async (changes, field) => {
    const answer = await post(asked(changes));
    const { errors } = await answer.json<{ errors: { field: string }[] }>();
    expect([answer.status, errors.map(error => error.field)]).toEqual([400, [field]]);
  });

  it("is nobody else's", async () => {
    const { id, job } = await train();
    const { key: other } = await newKey();
    for (const [method, path] of [
      ["GET", `/v1/trainings/${id}`],
      ["POST", `/v1/trainings/${id}/cancel`],
      ["DELETE", `/v1/trainings/${id}`],
      ["GET", `/v1/trainings/${id}/files/checkpoint`],
      ["GET", `/v1/jobs/${job.id}`],
      ["GET", `/v1/generations/${sameUlid(id, "generation")}`],
    ] as const)
      expect((await call(path, { method, key: other })).status, path).toBe(404);
    expect((await post(asked(), {})).status).toBe(202);
    expect((await call("/v1/trainings", { method: "POST", key: other, json: asked() })).status).toBe(400);
    expect((await (await call("/v1/trainings", { key: other })).json<{ data: unknown[] }>()).data).toEqual([]);
    // Not among its own tenant's generations either.
    expect((await call(`/v1/generations/${sameUlid(id, "generation")}`, { key })).status).toBe(404);
  });
});

describe("a training's settlement", () => {
  const lora = loraFile(96, 2, 32);
  const path = "kohya/my-cat.safetensors";

  it("keeps its files, registers its adapter, and may run again", async () => {
    const training = await train();
    const execution = executionOf(training);
    const result = await stage(execution, 1, { [path]: lora, "report.json": new Uint8Array([123, 125]) }, [
      { suffix: null, files: [path] },
    ]);
    const settleable = { execution, epoch: 1, outcome: "succeeded", result } as const;
    expect(await settle(env, settleable)).toEqual({ verdict: "settled", abandoned: [] });
    expect(await settle(env, settleable)).toEqual({ verdict: "settled", abandoned: [] });
    const done = await read(training.id);
    expect(done).toMatchObject({ status: "succeeded", report, estimate: null, adapters: [expect.stringMatching(/^adp_/)] });
    const adapter = adapterViewSchema.parse(await (await call(`/v1/adapters/${done.adapters[0]}`, { key })).json());
    expect(adapter).toMatchObject({ name: "my-cat", kind: "lora", status: "ready", visibility: "private", owned: true });
    const file = done.files.find(entry => entry.path === path)!;
    for (const answer of [await call(file.url!), await call(`/v1/trainings/${training.id}/files/${path}`, { key })])
      expect([answer.status, await sha256Hex(new Uint8Array(await answer.arrayBuffer()))]).toEqual([200, await sha256Hex(lora)]);
    expect((await call(file.url!.replace("kohya/my-cat.safetensors", "report.json"))).status).toBe(401);
    expect(await env.BUCKET.head(trainingStagingKey(execution, 1, path))).toBeNull();
  });

  it("is refused where a file is not what was announced, or an adapter's file is none of them", async () => {
    const execution = executionOf(await train());
    const result = await stage(execution, 1, { [path]: lora });
    const other = { ...result, files: [{ ...result.files[0]!, sha256: "1".repeat(64) }] };
    const verdict = async (changed: TrainingResult) => settle(env, { execution, epoch: 1, outcome: "succeeded", result: changed });
    expect(await verdict(other)).toEqual({
      verdict: "refused",
      reason: `${path}: expected a staged file with SHA-256 ${"1".repeat(64)}, got ${await sha256Hex(lora)}`,
    });
    expect(await verdict({ ...result, adapters: [{ suffix: null, files: ["x"] }] })).toEqual({
      verdict: "refused",
      reason: "adapters: expected paths among the files, got x",
    });
    expect(
      await settle(env, { execution, epoch: 1, outcome: "succeeded", result: { sha256: "0".repeat(64), bytes: 1, width: 8, height: 8 } }),
    ).toEqual({
      verdict: "refused",
      reason: "expected the result of a training, got a picture",
    });
  });

  it("keeps files that are no adapter, and of a dry run tells the estimate", async () => {
    const training = await train({ dry_run: true, steps: 500 });
    const result = await stage(executionOf(training), 1, { "notes.json": new Uint8Array([123, 125]) }, [
      { suffix: "bad", files: ["notes.json"] },
    ]);
    const measured = { ...result, report: { ...report, steps: 500 } };
    await settle(env, { execution: executionOf(training), epoch: 1, outcome: "succeeded", result: measured });
    expect(await read(training.id)).toMatchObject({
      status: "succeeded",
      adapters: [],
      estimate: { steps: 500, seconds: 250, memory_bytes: 1000 },
      files: [{ path: "notes.json" }],
    });
  });

  it("keeps a canceled training's last checkpoint for a day, and what it made if that came first", async () => {
    const canceled = await train();
    const execution = executionOf(canceled);
    const put = (epoch: number, text: string, sha256: string) => env.BUCKET.put(checkpointKey(execution, epoch), text, { sha256 });
    await put(9, "older", await sha256Hex("older"));
    await put(10, "newer", await sha256Hex("newer"));
    const answer = await call(`/v1/trainings/${canceled.id}/cancel`, { method: "POST", key });
    const view = trainingViewSchema.parse(await answer.json());
    expect(view).toMatchObject({ status: "canceled", files: [{ path: "checkpoint", bytes: 5, sha256: await sha256Hex("newer") }] });
    expect(await (await call(view.files[0]!.url!)).text()).toBe("newer");
    await settle(env, { execution, epoch: 10, outcome: "canceled" });
    const later = () => sweepOrphans(env, Date.now() + settings(env).ORPHAN_GRACE_MS + 1000);
    await later();
    expect(await env.BUCKET.head(checkpointKey(execution, 10))).not.toBeNull();
    await env.DB.prepare("UPDATE executions SET finished_at = finished_at - 86402000 WHERE id = ?").bind(execution).run();
    await later();
    expect(await env.BUCKET.head(checkpointKey(execution, 10))).toBeNull();
  });
});

describe("a net that predicts LoRAs", () => {
  const netSettings = { method: "hyper-lora", rank: 2 };

  it("is gone on from by its training's id: its file is fetched, its rank kept, and nothing but predicted unless steps are asked for", async () => {
    const first = await train({ settings: netSettings, steps: 30 });
    const net = new Uint8Array([1, 2, 3]);
    const result = await stage(executionOf(first), 1, { [hyperLoraNet]: net });
    const early = await post(asked({ settings: { method: "hyper-lora", start_from: first.id } }));
    expect([early.status, (await early.json<{ errors: { field: string }[] }>()).errors[0]!.field]).toEqual([400, "settings.start_from"]);
    await settle(env, { execution: executionOf(first), epoch: 1, outcome: "succeeded", result });
    const second = await train({ settings: { method: "hyper-lora", start_from: first.id, fine_tune_steps: 5 }, steps: undefined });
    const sha256 = await sha256Hex(net);
    expect(second.request).toMatchObject({ steps: 0, settings: { rank: 2, fine_tune_steps: 5, start_from: sha256 } });
    const row = await env.DB.prepare("SELECT inputs FROM executions WHERE id = ?").bind(executionOf(second)).first<{ inputs: string }>();
    const files = JSON.parse(row!.inputs).files;
    expect(files).toContainEqual({ sha256, bytes: 3, key: `trainings/${tenant}/${first.id}/${hyperLoraNet}` });
    expect((await env.BUCKET.head(files.at(-1).key))?.size).toBe(3);
  });
});

describe("a training on a runner", () => {
  it("has capabilities for its files and checkpoints, tells its steps, and goes on from the checkpoint in the next epoch", async () => {
    const pool = "trainers";
    const hash = `sha256:${"c".repeat(64)}`;
    await registerModel({ name: "trained", hash, pool });
    const training = await train({ model: "trained" });
    const execution = executionOf(training);
    const { params_sha256 } = (await env.DB.prepare("SELECT params_sha256 FROM executions WHERE id = ?")
      .bind(execution)
      .first<{ params_sha256: string }>())!;
    await dispatcherOf(pool).offer({ v: 1, execution, tenant, params_sha256, request_id: "req_test" });
    const first = await TestRunner.connect(pool, { models: [hash], ready: 1, trains: true });
    const granted = await claimsOf(first);
    expect(granted).toMatchObject({ execution, epoch: 1, kind: "training", inputs: dataset.items.map(({ sha256 }) => ({ sha256 })) });
    const checkpoint = granted.capabilities.checkpoint!;
    const object = (method: string, path: string, token: string, body?: string | Uint8Array<ArrayBuffer>) =>
      send(method, runnerPaths.object(path), token, body);
    expect((await object("GET", checkpointKey(execution), checkpoint.get)).status).toBe(404);
    expect((await object("PUT", checkpointKey(execution, 1), checkpoint.put, "state at step 5")).status).toBe(201);
    const inParts = `${checkpointKey(execution, 1)}?upload_id=`;
    expect((await object("POST", checkpointKey(execution, 2), checkpoint.put, "state")).status).toBe(403);
    const begun = await object("POST", checkpointKey(execution, 1), checkpoint.put, "state at step 5, sent in parts");
    const upload = begunUploadSchema.parse(await begun.json()).upload_id;
    expect((await object("PUT", `${inParts}${upload}&part=1025`, checkpoint.put, "state")).status).toBe(400);
    const taken = await object("PUT", `${inParts}${upload}&part=1`, checkpoint.put, "state at step 5");
    const ended = JSON.stringify({ bytes: 15, parts: [await taken.json()] });
    expect((await object("POST", `${inParts}${upload}`, checkpoint.put, "{}")).status).toBe(400);
    expect((await object("POST", `${inParts}${upload}`, checkpoint.put, ended)).status).toBe(201);
    expect((await object("PUT", checkpointKey(execution, 2), checkpoint.put, "state of another epoch")).status).toBe(403);
    const step = { type: "step", step: 5, steps: 20, loss: 0.1, smoothed_loss: 0.2, learning_rate: 1e-3, seconds_left: 3, memory_bytes: 9 };
    const told = JSON.stringify({ events: [{ type: "phase", phase: "training" }, step] });
    expect((await send("POST", runnerPaths.progress(execution), granted.capabilities.progress, told)).status).toBe(204);
    await until(async () => (await read(training.id)).job.progress?.step === 5, "the step to be told");

    // The first runner goes without a word; its hello on a new socket names no lease.
    first.close();
    const again = await TestRunner.connect(pool, { instance: first.instance, token: first.token, models: [hash] });
    const second = await TestRunner.connect(pool, { models: [hash], ready: 1, trains: true });
    const regranted = await claimsOf(second);
    expect(regranted).toMatchObject({ execution, epoch: 2 });
    const resumed = await object("GET", checkpointKey(execution), regranted.capabilities.checkpoint!.get);
    expect([resumed.status, await resumed.text()]).toEqual([200, "state at step 5"]);
    expect((await object("PUT", checkpointKey(execution, 1), checkpoint.put, "too late")).status).toBe(409);

    const file = loraFile(96, 3, 32);
    const path = "lora.safetensors";
    const below = (name: string) => trainingStagingKey(execution, 2, name);
    expect((await object("PUT", below(path), granted.capabilities.result, file)).status).toBe(403);
    expect((await object("PUT", below("a%2F..%2Fb.safetensors"), regranted.capabilities.result, file)).status).toBe(403);
    expect((await object("PUT", below("x.safetensors"), regranted.capabilities.result, "no such file")).status).toBe(400);
    expect((await object("PUT", below(path), regranted.capabilities.result, file)).status).toBe(201);
    const media_type = trainingMediaType(path);
    const files = [{ path, sha256: await sha256Hex(file), bytes: file.length, media_type }];
    const result = { kind: "training", files, adapters: [{ suffix: null, files: [path] }], report } as const;
    second.say({ type: "complete", execution, epoch: 2, result: { ...result, files, adapters: [{ suffix: null, files: [path] }] } });
    expect(await second.next("committed")).toMatchObject({ execution, epoch: 2 });
    expect(await read(training.id)).toMatchObject({ status: "succeeded", adapters: [expect.any(String)], files: [{ path }] });
    for (const runner of [again, second]) runner.close();
  });

  async function claimsOf(runner: TestRunner) {
    const { grant } = await runner.acceptLease();
    const claims = await verify("grant", grant, [publicJwk(settings(env).GRANT_KEY)]);
    return claims.executions[0]!;
  }

  async function send(method: string, path: string, token: string, body?: string | Uint8Array<ArrayBuffer>): Promise<Response> {
    const bytes = typeof body === "string" ? new Uint8Array(new TextEncoder().encode(body)) : body;
    const headers = {
      authorization: `Bearer ${token}`,
      ...(bytes && { "content-length": String(bytes.length), "x-atelier-sha256": await sha256Hex(bytes) }),
    };
    return call(path, { method, headers, ...(bytes && { body: bytes }) });
  }
});
