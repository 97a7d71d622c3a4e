import { runInDurableObject } from "cloudflare:test";
import { env } from "cloudflare:workers";
import { beforeAll, describe, expect, it } from "vitest";
import { app } from "../../edge/app.ts";
import type { JobEvents } from "../../edge/events/job-events.ts";
import { settle } from "../../edge/settle.ts";
import { Atelier, type AtelierOptions, AtelierProblem, type NumberedEvent } from "../../sdk/client.ts";
import { readSse } from "../../sdk/sse.ts";
import { loraFile, pngFile } from "./file-bytes.ts";
import { compute, newKey, registerModel, waitingExecutions } from "./support.ts";

const origin = "https://atelier.test";
const fetchWorker = async (url: string, init: RequestInit) => app.request(url, init, env);
const clientOf = async (options: Partial<AtelierOptions> = {}) =>
  new Atelier({ baseUrl: origin, apiKey: (await newKey()).key, fetch: fetchWorker, ...options });
const request = { prompt: "a red circle", width: 64, height: 32 };

beforeAll(async () => {
  await registerModel();
});

describe("uploads and adapters", () => {
  it("send a picture, which a generation then starts from", async () => {
    const client = await clientOf();
    const upload = await client.uploads.create(new Blob([pngFile(64, 32)], { type: "image/png" }));
    expect(upload).toMatchObject({ status: "ready", width: 64, height: 32 });
    expect(await client.uploads.get(upload.id)).toEqual(upload);
    const started = await client.start({ prompt: "x", image: upload.id, strength: 0.6 });
    if (started.object !== "job") throw new Error("expected a job");
    expect((await client.get(started.generation)).request).toMatchObject({ image: upload.id, strength: 0.6, width: 64, height: 32 });
    await expect(client.uploads.create(new Blob(["text"], { type: "image/png" }))).rejects.toMatchObject({ code: "invalid_request" });
  });

  it("send an adapter's files, and nothing that is there already", async () => {
    const methods: string[] = [];
    const client = await clientOf({
      fetch: (url, init) => {
        methods.push(`${init.method}`);
        return fetchWorker(url, init);
      },
    });
    const file = new File([loraFile(96, 2, 50)], "style.safetensors");
    const adapter = await client.adapters.create({ name: "style", files: [file] });
    expect(adapter).toMatchObject({ name: "style", status: "ready", kind: "lora", files: [{ path: "style.safetensors" }] });
    expect(methods).toEqual(["POST", "PUT", "GET"]);
    expect((await client.adapters.create({ name: "style", files: [{ path: "style.safetensors", file }] })).id).toBe(adapter.id);
    expect(methods).toEqual(["POST", "PUT", "GET", "POST"]);
    expect((await client.adapters.list()).data.map(({ id }) => id)).toEqual([adapter.id]);
    const started = await client.start({ prompt: "x", adapters: [{ adapter: "style", weight: 0.5 }] });
    expect(started.object).toBe("job");
    await client.adapters.delete(adapter.id);
    await expect(client.adapters.get(adapter.id)).rejects.toMatchObject({ code: "not_found" });
  });

  it("make a dataset, and a training with it, which is canceled", async () => {
    const client = await clientOf();
    const picture = (content: string) => new File([pngFile(64, 64, content)], "same name.png", { type: "image/png" });
    const dataset = await client.datasets.create({
      name: "cats",
      items: [
        { file: picture("a"), caption: "a sks cat", mask: picture("mask") },
        { file: picture("b"), split: "test" },
      ],
    });
    expect(dataset.items.map(({ caption, split, mask }) => [caption, split, mask !== null]).sort()).toEqual([
      ["", "test", false],
      ["a sks cat", "train", true],
    ]);
    const { sha256 } = dataset.items.find(({ split }) => split === "test")!;
    expect(await client.datasets.change(dataset.id, sha256, { caption: "a cat" })).toMatchObject({ caption: "a cat", split: "test" });
    expect((await client.datasets.file(dataset.id, sha256)).size).toBe(pngFile(64, 64, "b").length);
    const training = await client.trainings.create({ name: "cat", model: "pocket", dataset: dataset.id, settings: { method: "lora" } });
    expect(await client.job(training.job.id)).toMatchObject({ kind: "training", training: training.id });
    expect((await client.trainings.cancel(training.id)).status).toBe("canceled");
    const events: string[] = [];
    for await (const { type } of client.events(training.job.id)) events.push(type);
    expect(events).toEqual(["queued", "canceled"]);
    await client.trainings.delete(training.id);
    await client.datasets.delete(dataset.id);
    expect([(await client.trainings.list()).data, (await client.datasets.list()).data]).toEqual([[], []]);
  });

  it("throw the reasons where an adapter is refused", async () => {
    const client = await clientOf();
    const files = [new File([pngFile()], "picture.safetensors")];
    await expect(client.adapters.create({ name: "picture", files })).rejects.toMatchObject({
      code: "adapter_refused",
      message: expect.stringContaining("expected"),
    });
  });
});

describe("generate", () => {
  it("resolves with the pictures once they are there, tells the way, and finds the repeat in the cache", async () => {
    const job = Promise.withResolvers<string>();
    const events: NumberedEvent[] = [];
    const client = await clientOf({
      fetch: async (url, init) => {
        const response = await fetchWorker(url, init);
        if (response.status === 202) job.resolve((await response.clone().json<{ id: string }>()).id);
        return response;
      },
    });
    const generating = client.generate({ ...request, seed: 7 }, { onEvent: event => events.push(event) });
    await compute(await job.promise);
    const generation = await generating;
    expect(generation).toMatchObject({
      object: "generation",
      status: "succeeded",
      pictures: [{ index: 0, seed: 7, width: 64, height: 32, cached: false }],
    });
    expect(events.map(({ type }) => type)).toEqual(["queued", "picture", "succeeded"]);
    const again = await client.generate({ ...request, seed: 7 });
    expect(again.pictures).toMatchObject([{ cached: true, sha256: generation.pictures[0]!.sha256 }]);
    expect((await client.picture(again.pictures[0]!.id!)).size).toBe(generation.pictures[0]!.bytes);
    expect((await client.list({ limit: 1 })).data).toMatchObject([{ id: again.id }]);
    expect((await client.list({ limit: 1, cursor: again.id })).data).toMatchObject([{ id: generation.id }]);
    await client.delete(again.id);
    await expect(client.get(again.id)).rejects.toMatchObject({ code: "not_found" });
    expect((await (await clientOf()).list()).data).toEqual([]);
  });

  it("throws the job's problem where it fails, and returns what was canceled", async () => {
    const client = await clientOf();
    const start = async (seed: number, idempotencyKey: string) => {
      const started = await client.start({ ...request, seed }, { idempotencyKey });
      if (started.object !== "job") throw new Error("expected a job");
      return started;
    };
    const failing = await start(8, "fails");
    const [execution] = await waitingExecutions(failing.id);
    await settle(env, { execution: execution!, epoch: 1, outcome: "failed", error: { code: "runner_failed", message: "out of memory" } });
    const error = { code: "runner_failed", problem: { status: 500, detail: "out of memory" } };
    await expect(client.generate({ ...request, seed: 8 }, { idempotencyKey: "fails" })).rejects.toMatchObject(error);
    const canceled = await start(9, "canceled");
    expect(await client.cancel(canceled.id)).toMatchObject({ status: "canceled" });
    expect(await client.cancel(failing.id)).toMatchObject({ status: "failed" });
    expect(await client.job(canceled.id)).toMatchObject({ status: "canceled" });
    const generation = await client.generate({ ...request, seed: 9 }, { idempotencyKey: "canceled" });
    expect(generation).toMatchObject({ id: canceled.generation, status: "canceled", error: null });
  });

  it("makes nothing twice when the answer is lost on the way", async () => {
    let lost = 0;
    const client = await clientOf({
      fetch: async (url, init) => {
        const response = await fetchWorker(url, init);
        if (init.method === "POST" && lost++ === 0) {
          await response.body?.cancel();
          throw new TypeError("network connection lost");
        }
        return response;
      },
    });
    const started = await client.start({ ...request, seed: 10 });
    expect(lost).toBe(2);
    expect((await client.list()).data.map(({ job }) => job.id)).toEqual([started.id]);
  });
});

describe("problems", () => {
  it("carry code, status, fields and the request id", async () => {
    const client = await clientOf();
    const refused = await client.start({ prompt: "x", steps: 0 }).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(AtelierProblem);
    expect(refused).toMatchObject({
      code: "invalid_request",
      problem: { status: 400, instance: expect.stringMatching(/^req_/), errors: [{ field: "steps" }] },
    });
    const stranger = await clientOf({ apiKey: "atl_local_x" });
    await expect(stranger.models()).rejects.toMatchObject({ code: "unauthorized", problem: { status: 401 } });
    expect((await client.models()).map(({ name }) => name)).toEqual(["pocket"]);
  });

  it("that pass are waited for; others and too many are thrown", async () => {
    const answers = [
      new Response("", { status: 502 }),
      Response.json({ code: "rate_limited", status: 429, title: "" }, { status: 429, headers: { "retry-after": "0" } }),
    ];
    let calls = 0;
    const next = (fallback: () => Response) => async () => answers[calls++] ?? fallback();
    const patient = new Atelier({ baseUrl: origin, apiKey: "k", fetch: next(() => Response.json({ data: [] })) });
    expect(await patient.models()).toEqual([]);
    expect(calls).toBe(3);
    const impatient = new Atelier({
      baseUrl: origin,
      apiKey: "k",
      maxRetries: 1,
      fetch: async () => new Response("<html>", { status: 503, headers: { "retry-after": "0" } }),
    });
    await expect(impatient.models()).rejects.toMatchObject({ code: "unavailable", problem: { type: "about:blank", status: 503 } });
  });

  it("give way to the caller's abort", async () => {
    const client = await clientOf({ fetch: async () => new Response("", { status: 503, headers: { "retry-after": "3600" } }) });
    const { signal, abort } = withAbort();
    const waiting = client.models({ signal });
    abort();
    await expect(waiting).rejects.toThrow("enough");
  });
});

describe("events", () => {
  it("go on after the last one where a stream breaks off or its time is over", async () => {
    const requests: (string | null)[] = [];
    const client = await clientOf({
      fetch: async (url, init) => {
        const response = await fetchWorker(url, init);
        if (!url.endsWith("/events")) return response;
        requests.push(new Headers(init.headers).get("last-event-id"));
        return requests.length === 1 ? brokenAfter(response, 'data: {"type":"queued"') : response;
      },
    });
    const job = await client.start({ ...request, seed: 11 });
    await runInDurableObject(env.JOB_EVENTS.getByName(job.id), (object: JobEvents) => {
      object.times = { ...object.times, stream_ms: 50, retry_ms: 5 };
    });
    const seen: [string, string][] = [];
    for await (const event of client.events(job.id)) {
      seen.push([event.id, event.type]);
      // The third connection is made once the second one's time is over.
      if (event.type === "queued")
        void expect
          .poll(() => requests.length, { timeout: 5000 })
          .toBeGreaterThanOrEqual(3)
          .then(() => compute(job.id));
    }
    expect(seen).toEqual([
      ["1", "queued"],
      ["2", "picture"],
      ["3", "succeeded"],
    ]);
    expect(requests.slice(0, 3)).toEqual([null, null, "1"]);
    const rest = [];
    for await (const event of client.events(job.id, { lastEventId: "2" })) rest.push(event.type);
    for await (const event of client.events(job.id, { lastEventId: "3" })) rest.push(event.type);
    expect(rest).toEqual(["succeeded"]);
  });

  it("let go of the stream when the caller stops", async () => {
    const client = await clientOf();
    const job = await client.start({ ...request, seed: 12 });
    await runInDurableObject(env.JOB_EVENTS.getByName(job.id), (object: JobEvents) => {
      object.times = { ...object.times, comment_ms: 20 };
    });
    for await (const event of client.events(job.id)) if (event.type === "queued") break;
    await expect
      .poll(() => runInDurableObject(env.JOB_EVENTS.getByName(job.id), (object: JobEvents) => object.following), { timeout: 5000 })
      .toBe(0);
  });
});

describe("readSse", () => {
  it("puts messages together whatever pieces they come in, and drops what is cut off", async () => {
    const text = ': hello\n\nid: 1\r\nevent: a\r\ndata: {"x":\r\ndata: "ü"}\r\n\r\nretry: 7\n\ndata: cut';
    const bytes = new TextEncoder().encode(text);
    for (const size of [1, 2, 3, 7, 1000]) {
      const body = new ReadableStream<Uint8Array>({
        start(controller) {
          for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
          controller.close();
        },
      });
      const messages = [];
      for await (const message of readSse(body)) messages.push(message);
      expect(messages).toEqual([
        { id: undefined, event: "message", data: "", retry: undefined },
        { id: "1", event: "a", data: '{"x":\n"ü"}', retry: undefined },
        { id: undefined, event: "message", data: "", retry: 7 },
      ]);
    }
  });
});

function withAbort() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort(new Error("enough")) };
}

/** A response whose body fails in the middle of the message that contains `text`. */
function brokenAfter(response: Response, text: string): Response {
  const decoder = new TextDecoder();
  const reader = response.body!.getReader();
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { value } = await reader.read();
      const chunk = decoder.decode(value);
      if (!chunk.includes(text)) return controller.enqueue(value!);
      controller.enqueue(value!.slice(0, 10));
      controller.error(new TypeError("network connection lost"));
      await reader.cancel();
    },
  });
  return new Response(body, response);
}
