import { env } from "cloudflare:workers";
import { beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Env } from "../../../edge/env.ts";
import { preferredWait } from "../../../edge/prefer.ts";
import type { GenerationView } from "../../../shared/job.ts";
import { samplerNames, samplerTraits } from "../../../shared/samplers.ts";
import {
  call,
  commit,
  compute,
  counted,
  generateHit,
  generateMiss,
  newKey,
  readGeneration,
  registerModel,
  waitingExecutions,
} from "../support.ts";

beforeAll(async () => {
  await registerModel();
});

let key: string;
beforeEach(async () => {
  key = (await newKey()).key;
});

describe("POST /v1/generations", () => {
  it("answers 202 with the job, and the generation tells every default that was filled in", async () => {
    const answer = await call("/v1/generations", { method: "POST", key, json: { prompt: "a cube" } });
    expect(answer.status).toBe(202);
    expect(answer.headers.get("content-type")).toBe("application/json");
    expect(answer.headers.get("cache-control")).toBe("no-store");
    expect(answer.headers.get("access-control-allow-origin")).toBe("*");
    const job = await answer.json<{ id: string; generation: string }>();
    expect(job).toMatchObject({
      object: "job",
      kind: "generation",
      status: "queued",
      error: null,
      finished_at: null,
      progress: { step: 0, steps: 20 },
    });
    expect(job.generation.slice(4)).toBe(job.id.slice(4));
    const generation = await readGeneration(key, job.id);
    expect(generation.request).toEqual({
      prompt: "a cube",
      prompt_2: null,
      negative_prompt: "",
      negative_prompt_2: null,
      prompt_syntax: "plain",
      clip_skip: 0,
      guidance_interval: [0, 1],
      noise_source: "philox",
      variation: null,
      image: null,
      image_guidance_scale: null,
      mask: null,
      mask_blur: 0,
      padding_mask_crop: null,
      mask_fill: "original",
      outpaint: null,
      upscale: null,
      refiner: null,
      micro_conditioning: null,
      tiled_vae: false,
      per_image: [],
      model: "pocket",
      width: 128,
      height: 96,
      steps: 20,
      guidance_scale: 3,
      guidance_rescale: 0.5,
      seed: generation.pictures[0]!.seed,
      sampler: "euler",
      sampler_options: {},
      num_images: 1,
      format: "png",
      output: "url",
      adapters: [],
      cache: "auto",
      deadline: 600,
    });
    expect(generation.pictures).toMatchObject([
      { index: 0, id: null, status: "queued", width: 128, height: 96, media_type: "image/png", url: null },
    ]);
  });

  it.each([
    ["a missing prompt", {}, "prompt", "nothing", "text"],
    ["an empty prompt", { prompt: "" }, "prompt", '""', "at least 1 character"],
    ["an unknown field", { prompt: "x", size: 3 }, "size", "3", "no such field"],
    [
      "a size that is no multiple",
      { prompt: "x", width: 130 },
      "width",
      "130",
      "a multiple of 8 from 32 to 512, as the model pocket draws",
    ],
    ["a size that is too small", { prompt: "x", height: 8 }, "height", "8", "a multiple of 8 from 32 to 512, as the model pocket draws"],
    ["a size that is too large", { prompt: "x", width: 520 }, "width", "520", "a multiple of 8 from 32 to 512, as the model pocket draws"],
    ["a seed out of range", { prompt: "x", seed: 2 ** 32 }, "seed", "4294967296", "a number of at most 4294967295"],
    ["a fraction of a seed", { prompt: "x", seed: 1.5 }, "seed", "1.5", "a whole number"],
    ["too many steps", { prompt: "x", steps: 151 }, "steps", "151", "a number of at most 150"],
    [
      "an unknown sampler",
      { prompt: "x", sampler: "magic" },
      "sampler",
      '"magic"',
      `one of ${samplerNames.join(", ")}, or its name in diffusers, A1111 or ComfyUI`,
    ],
    [
      "an option of another sampler",
      { prompt: "x", sampler: "euler", sampler_options: { eta: 1 } },
      "sampler_options.eta",
      "1",
      `an option of euler: ${samplerTraits.euler.options.join(", ")}`,
    ],
    [
      "a schedule that the sampler lacks",
      { prompt: "x", sampler: "ddim", sampler_options: { schedule: "karras" } },
      "sampler_options.schedule",
      '"karras"',
      `an option of ddim: ${samplerTraits.ddim.options.join(", ")}`,
    ],
    ["an unknown option", { prompt: "x", sampler_options: { speed: 1 } }, "sampler_options.speed", "1", "no such field"],
    ["too many pictures", { prompt: "x", num_images: 9 }, "num_images", "9", "a number of at most 8"],
    [
      "an unknown adapter",
      { prompt: "x", adapters: [{ adapter: "style" }] },
      "adapters.0.adapter",
      '"style"',
      "the name, id or content hash of an adapter of GET /v1/adapters",
    ],
    ["an unknown model", { prompt: "x", model: "gone" }, "model", '"gone"', "one of pocket"],
    ["a body that is no object", [1], "body", "[1]", "an object"],
  ])("refuses %s, naming field, expected and got", async (_, json, field, got, expected) => {
    const answer = await call("/v1/generations", { method: "POST", key, json });
    expect(answer.status).toBe(400);
    expect(answer.headers.get("content-type")).toBe("application/problem+json");
    const problem = await answer.json<{ code: string; errors: { field: string; expected: string; got: string }[]; instance: string }>();
    expect(problem.code).toBe("invalid_request");
    expect(problem.instance).toBe(answer.headers.get("x-request-id"));
    expect(problem.errors).toHaveLength(1);
    expect(problem.errors[0]).toMatchObject({ field, got });
    expect(problem.errors[0]!.expected).toBe(expected);
  });

  it("refuses what is not JSON, not said to be JSON, or too large", async () => {
    const post = (body: string, type = "application/json") =>
      call("/v1/generations", { method: "POST", key, body, headers: { "content-type": type } });
    const [broken, unsaid, large] = [
      await post("{"),
      await post('{"prompt":"x"}', "text/plain"),
      await post(JSON.stringify({ prompt: "x".repeat(13 * 1024 * 1024) })),
    ];
    expect([broken.status, unsaid.status, large.status]).toEqual([400, 400, 413]);
    expect(await broken.json()).toMatchObject({ code: "invalid_json" });
    expect(await unsaid.json()).toMatchObject({
      code: "invalid_request",
      detail: "Expected the header Content-Type: application/json, got text/plain.",
    });
    expect(await large.json()).toMatchObject({ code: "payload_too_large" });
  });

  it("output: b64 brings the file that the hash names", async () => {
    const job = await generateMiss(key, { seed: 1, num_images: 2 });
    await compute(job.id);
    const { env: watched, traffic } = counted();
    const { pictures } = await generateHit(key, { seed: 1, num_images: 2, output: "b64" }, { env: watched });
    for (const { b64, sha256, bytes } of pictures) {
      const file = Uint8Array.from(atob(b64!), character => character.charCodeAt(0));
      expect(file.length).toBe(bytes);
      expect(
        Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", file)), byte => byte.toString(16).padStart(2, "0")).join(""),
      ).toBe(sha256);
    }
    expect(traffic.r2).toEqual(["head", "head", "get", "get"]);
  });
});

describe("Prefer", () => {
  it.each([
    ["wait=10", 10],
    ["wait=0", 0],
    ["wait=600", 60],
    ["respond-async, wait=5", 5],
    ['handling=lenient; wait = "7"', 7],
    ["wait=abc", undefined],
    ["wait=-1", undefined],
    ["await=5", undefined],
    [undefined, undefined],
  ])("%s: %s seconds", (header, seconds) => {
    expect(preferredWait(header)).toBe(seconds);
  });
});

describe("GET /v1/generations", () => {
  it("lists newest first, page by page, each generation once", async () => {
    const made: string[] = [];
    for (let i = 0; i < 5; i++) made.push((await generateMiss(key, { seed: i })).generation);
    const seen: string[] = [];
    let cursor: string | null = "";
    let pages = 0;
    while (cursor !== null) {
      const answer: { object: string; data: GenerationView[]; next_cursor: string | null } = await (
        await call(`/v1/generations?limit=2${cursor && `&cursor=${cursor}`}`, { key })
      ).json();
      expect(answer.object).toBe("list");
      seen.push(...answer.data.map(({ id }) => id));
      cursor = answer.next_cursor;
      pages++;
    }
    expect(pages).toBe(3);
    expect(seen).toEqual(made.reverse());
  });

  it.each(["limit=0", "limit=51", "limit=x", "cursor=abc", "page=2"])("refuses %s", async query => {
    expect((await call(`/v1/generations?${query}`, { key })).status).toBe(400);
  });
});

describe("DELETE /v1/generations/{id}", () => {
  const remove = (id: string) => call(`/v1/generations/${id}`, { method: "DELETE", key });
  const objects = async () => (await env.BUCKET.list({ prefix: "pictures/" })).objects.length;

  it("deletes what was computed for it after it was canceled, unless another generation shows it", async () => {
    const fail = () => Promise.reject(new Error("down"));
    // Nobody stops what is abandoned, so that the commit comes after the cancel.
    const deaf = { ...env, DISPATCHER: { getByName: () => ({ abandon: fail, describe: fail, watch: fail }) } } as unknown as Env;
    const computedAfterCancel = async (seed: number) => {
      const job = await generateMiss(key, { seed }, { env: deaf });
      const [execution] = await waitingExecutions(job.id);
      await call(`/v1/jobs/${job.id}/cancel`, { method: "POST", key, env: deaf });
      await commit(execution!);
      return job.generation;
    };
    const alone = await computedAfterCancel(78);
    expect((await remove(alone)).status).toBe(204);
    await generateMiss(key, { seed: 78 });

    const shown = await computedAfterCancel(79);
    const other = await generateHit(key, { seed: 79 });
    expect((await remove(shown)).status).toBe(204);
    expect((await generateHit(key, { seed: 79 })).pictures[0]!.id).toBe(other.pictures[0]!.id);
  });

  it("deletes the record, and the pictures when no other generation shows them", async () => {
    const job = await generateMiss(key, { seed: 1 });
    await compute(job.id);
    const hit = await generateHit(key, { seed: 1 });
    const { url } = hit.pictures[0]!;
    const before = await objects();
    expect((await remove(job.generation)).status).toBe(204);
    expect((await call(`/v1/generations/${job.generation}`, { key })).status).toBe(404);
    expect((await remove(job.generation)).status).toBe(404);
    expect((await call(url!)).status).toBe(200);
    expect((await remove(hit.id)).status).toBe(204);
    expect((await call(url!)).status).toBe(404);
    expect(await objects()).toBe(before - 1);
    await generateMiss(key, { seed: 1 });
  });

  it("cancels what is live", async () => {
    const job = await generateMiss(key, { seed: 1 });
    const [execution] = await waitingExecutions(job.id);
    expect((await remove(job.generation)).status).toBe(204);
    const row = await env.DB.prepare("SELECT state FROM executions WHERE id = ?").bind(execution!).first<{ state: string }>();
    expect(["abandoned", "canceled"]).toContain(row!.state);
  });
});

it("shows a generation whose request was stored before there were adapters and input pictures", async () => {
  const { key } = await newKey();
  const job = await generateMiss(key, { seed: 1 });
  const stored = {
    ...{
      prompt: "a red cube",
      negative_prompt: "",
      model: "pocket",
      width: 128,
      height: 96,
      steps: 20,
      guidance_scale: 3,
      guidance_rescale: 0.5,
    },
    ...{
      seed: 1,
      sampler: "euler",
      sampler_options: {},
      num_images: 1,
      format: "png",
      output: "url",
      adapters: [],
      cache: "auto",
      deadline: 600,
    },
  };
  await env.DB.prepare("UPDATE jobs SET request = ? WHERE id = ?").bind(JSON.stringify(stored), job.id).run();
  const generation = await readGeneration(key, job.id);
  expect(generation.request).toMatchObject({
    ...stored,
    image: null,
    per_image: [],
    prompt_syntax: "plain",
    noise_source: "philox",
    clip_skip: 0,
  });
});
