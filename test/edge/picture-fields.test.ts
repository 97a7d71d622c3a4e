import { env } from "cloudflare:workers";
import { beforeAll, describe, expect, it } from "vitest";
import { inputKey } from "../../edge/tenant-files.ts";
import { sha256Hex } from "../../shared/canonical.ts";
import type { GenerationView } from "../../shared/job.ts";
import { type PictureRequest, pictureRequestSchema } from "../../shared/picture.ts";
import { loraFile, pngFile, safetensorsFile, uploadAdapter, uploadPicture } from "./files.ts";
import { call, compute, generateHit, generateMiss, newKey, readGeneration, registerModel } from "./support.ts";

let key: string;
let tenant: string;
/** An uploaded picture of 64 x 48 pixels. */
let image: string;
let mask: string;

beforeAll(async () => {
  await registerModel();
  await registerModel({ name: "inpainter", hash: `sha256:${"b".repeat(64)}`, tasks: ["inpaint"] });
  await registerModel({ name: "wide", hash: `sha256:${"f".repeat(64)}`, max_size: 2048 });
  await registerModel({ name: "editor", hash: `sha256:${"c".repeat(64)}`, tasks: ["edit"] });
  await registerModel({ name: "xl", hash: `sha256:${"d".repeat(64)}`, family: "sdxl", text_widths: [96, 128] });
  await registerModel({
    name: "xl-refiner",
    hash: `sha256:${"e".repeat(64)}`,
    family: "sdxl-refiner",
    text_widths: [128],
    tasks: ["image-to-image"],
  });
  ({ key, tenant_id: tenant } = await newKey());
  image = (await uploadPicture(key, pngFile(64, 48, "source"))).id;
  mask = (await uploadPicture(key, pngFile(64, 48, "mask"))).id;
});

interface Planned {
  readonly request: PictureRequest;
  readonly inputs: { files: { sha256: string; key: string }[]; adapters: unknown[] };
  readonly batchKey: string;
  readonly generation: GenerationView;
}

let seeds = 1000;
/** What the runner would get for each picture of a request that nothing else has asked for. */
async function plan(request: Record<string, unknown>): Promise<Planned[]> {
  const job = await generateMiss(key, { seed: seeds++, ...request });
  const { results } = await env.DB.prepare(
    "SELECT e.params, e.inputs, e.batch_key FROM job_pictures p JOIN executions e ON e.id = p.execution_id WHERE p.job_id = ? ORDER BY p.idx",
  )
    .bind(job.id)
    .all<{ params: string; inputs: string; batch_key: string }>();
  const generation = await readGeneration(key, job.id);
  return results.map(({ params, inputs, batch_key }) => ({
    request: pictureRequestSchema.parse(JSON.parse(params)),
    inputs: JSON.parse(inputs) as Planned["inputs"],
    batchKey: batch_key,
    generation,
  }));
}
const planOne = async (request: Record<string, unknown>) => (await plan(request))[0]!;

async function errorsOf(request: Record<string, unknown>) {
  const answer = await call("/v1/generations", { method: "POST", key, json: { prompt: "x", ...request } });
  expect(answer.status).toBe(400);
  return (await answer.json<{ errors: { field: string; expected: string; got?: string }[] }>()).errors;
}

describe("every field", () => {
  it("reaches the runner", async () => {
    const { request } = await planOne({
      prompt: "a (red:1.2) cube",
      negative_prompt: "fog",
      prompt_syntax: "a1111",
      clip_skip: 1,
      guidance_scale: 5,
      guidance_rescale: 0.3,
      guidance_interval: [0.1, 0.9],
      seed: 7,
      noise_source: "mt19937",
      variation: { seed: 8, strength: 0.25 },
      sampler: "DPM++ 2M Karras",
      sampler_options: { lower_order_final: true },
      steps: 12,
      width: 160,
      height: 96,
      upscale: { scale: 1.5, mode: "pixel", strength: 0.4 },
      tiled_vae: true,
      format: "webp",
    });
    expect(request).toMatchObject({
      prompt: "a (red:1.2) cube",
      negative_prompt: "fog",
      prompt_syntax: "a1111",
      clip_skip: 1,
      guidance_scale: 5,
      guidance_rescale: 0.3,
      guidance_start: 0.1,
      guidance_end: 0.9,
      seed: 7,
      noise_source: "mt19937",
      variation: { seed: 8, strength: 0.25 },
      sampler: "dpmpp_2m",
      sampler_options: { schedule: "karras", lower_order_final: true },
      upscale: { scale: 1.5, mode: "pixel", strength: 0.4, steps: 12 },
      tiled_vae: true,
      format: "webp",
    });
  });

  it("of a second pass says how large the result is, and takes a result of that size", async () => {
    const job = await generateMiss(key, { seed: seeds++, width: 64, height: 64, upscale: { scale: 2 } });
    expect((await readGeneration(key, job.id)).pictures[0]).toMatchObject({ width: 128, height: 128 });
    await compute(job.id, 2);
    const generation = await readGeneration(key, job.id);
    expect([generation.status, generation.pictures[0]!.width]).toEqual(["succeeded", 128]);
  });

  it("of SDXL: a second prompt, micro-conditioning, a refiner, and no negative prompt as none", async () => {
    const { request } = await planOne({
      model: "xl",
      prompt: "a",
      prompt_2: "b",
      refiner: { model: "xl-refiner" },
      micro_conditioning: { original_size: [480, 640], aesthetic_score: 7 },
    });
    expect(request).toMatchObject({
      prompt: "a",
      prompt_2: "b",
      negative_prompt: null,
      negative_prompt_2: null,
      refiner: { model: `sha256:${"e".repeat(64)}`, switch_at: 0.8 },
      micro_conditioning: {
        original_size: [480, 640],
        crops_coords_top_left: [0, 0],
        target_size: [96, 128],
        negative_original_size: [480, 640],
        negative_target_size: [96, 128],
        aesthetic_score: 7,
        negative_aesthetic_score: 2.5,
      },
    });
    expect((await planOne({ model: "xl", negative_prompt: "" })).request.negative_prompt).toBe("");
    expect((await planOne({})).request.negative_prompt).toBe("");
  });

  it("is in the answer again: what it echoes makes the same pictures", async () => {
    const job = await generateMiss(key, {
      seed: seeds++,
      image,
      mask,
      mask_blur: 2,
      upscale: { scale: 2 },
      per_image: [{ prompt: "one" }, { image: mask }],
    });
    const { request } = await readGeneration(key, job.id);
    await compute(job.id, 2);
    const again = await generateHit(key, request);
    expect(again.request).toEqual(request);
  });
});

describe("requests that mean the same", () => {
  it.each<[string, Record<string, unknown>, Record<string, unknown>]>([
    ["a second prompt that is the first", { model: "xl", prompt: "a", prompt_2: "a" }, { model: "xl", prompt: "a" }],
    [
      "a second negative prompt that is the first",
      { model: "xl", negative_prompt: "a", negative_prompt_2: "a" },
      { model: "xl", negative_prompt: "a" },
    ],
    ["micro-conditioning that says the size", { model: "xl", micro_conditioning: { original_size: [96, 128] } }, { model: "xl" }],
    ["a sampler by another name", { sampler: "Euler a" }, { sampler: "euler_a" }],
    ["a schedule in the sampler's name", { sampler: "DPM++ 2M Karras" }, { sampler: "dpmpp_2m", sampler_options: { schedule: "karras" } }],
    ["a variation of nothing", { variation: { seed: 3, strength: 0 } }, {}],
    ["outpainting by nothing", { outpaint: {} }, {}],
    ["the defaults", { steps: 20, guidance_scale: 3, width: 128, height: 96, clip_skip: 0, guidance_interval: [0, 1] }, {}],
  ])("are one in the cache: %s", async (_, one, other) => {
    const seed = seeds++;
    const job = await generateMiss(key, { seed, ...one });
    await compute(job.id);
    await generateHit(key, { seed, ...other });
  });

  it("the model's own sampler options hold for its sampler, and give way to the request's", async () => {
    const defaults = { width: 128, height: 96, steps: 20, guidance_scale: 3, guidance_rescale: 0, clip_skip: 0 };
    await registerModel({
      name: "karras",
      hash: `sha256:${"f".repeat(64)}`,
      defaults: { ...defaults, sampler: "euler", sampler_options: { schedule: "karras", s_noise: 1 } },
    });
    const options = async (request: Record<string, unknown>) => (await planOne({ model: "karras", ...request })).request.sampler_options;
    expect(await options({})).toEqual({ schedule: "karras", s_noise: 1 });
    expect(await options({ sampler_options: { schedule: "exponential" } })).toEqual({ schedule: "exponential", s_noise: 1 });
    expect(await options({ sampler: "ddim" })).toEqual({});
  });
});

describe("input pictures", () => {
  it("come as upload, as data: and as an earlier picture, and are one in the cache by their content", async () => {
    const made = await generateMiss(key, { seed: seeds++, width: 64, height: 64 });
    await compute(made.id);
    const { id } = (await readGeneration(key, made.id)).pictures[0]!;
    const file = new Uint8Array(await (await call(`/v1/pictures/${id}`, { key })).arrayBuffer());
    const sha256 = await sha256Hex(file);
    const seed = seeds++;
    const size = { width: 64, height: 64 };
    const byPicture = await planOne({ seed, image: id, ...size });
    expect(byPicture.request.source).toEqual({ image: sha256, strength: 0.8 });
    expect(byPicture.inputs.files).toMatchObject([{ sha256, key: expect.stringMatching(/^pictures\/ten_/) }]);
    expect(byPicture.generation.request.image).toBe(id);
    await compute(byPicture.generation.job.id);
    const inline = `data:image/png;base64,${btoa(String.fromCharCode(...file))}`;
    const byData = await generateHit(key, { seed, image: inline, ...size });
    expect(byData.request.image).toMatch(/^upl_/);
    await generateHit(key, { seed, image: byData.request.image!, ...size });
    const other = await planOne({ image: inline, ...size });
    expect(other.inputs.files).toEqual([{ sha256, bytes: file.length, key: inputKey(tenant, sha256) }]);
  });

  it("give the result their shape, at the model's area, with what is painted around them", async () => {
    const large = (await uploadPicture(key, pngFile(1024, 256))).id;
    expect((await planOne({ image })).request).toMatchObject({ width: 64, height: 48 });
    // 128 x 96 pixels of the shape 4:1.
    expect((await planOne({ image: large })).request).toMatchObject({ width: 224, height: 56 });
    expect((await planOne({ image, outpaint: { left: 16, top: 8 } })).request).toMatchObject({
      width: 80,
      height: 56,
      outpaint: { left: 16, right: 0, top: 8, bottom: 0 },
      source: { strength: 1 },
    });
    expect((await planOne({ image, width: 96, height: 96 })).request).toMatchObject({ width: 96, height: 96 });
  });

  it("with a mask: inpainting with its settings", async () => {
    const { request, inputs } = await planOne({ model: "inpainter", image, mask, mask_blur: 4, padding_mask_crop: 8, mask_fill: "noise" });
    expect(request).toMatchObject({
      source: { strength: 1 },
      mask: { blur: 4, padding_crop: 8, fill: "noise" },
      image_guidance_scale: null,
    });
    expect(inputs.files.map(({ sha256 }) => sha256)).toEqual([request.source!.image, request.mask!.image]);
  });

  it("to an edit model: its own guidance", async () => {
    expect((await planOne({ model: "editor", image })).request).toMatchObject({ source: { strength: 1 }, image_guidance_scale: 1.5 });
    expect((await planOne({ model: "editor", image, image_guidance_scale: 2 })).request.image_guidance_scale).toBe(2);
  });

  it("of another tenant are as absent as any", async () => {
    const stranger = (await newKey()).key;
    const answer = await call("/v1/generations", { method: "POST", key: stranger, json: { prompt: "x", image } });
    expect([answer.status, await answer.json()]).toMatchObject([400, { errors: [{ field: "image", got: JSON.stringify(image) }] }]);
  });

  it("that are used stay longer", async () => {
    const upload = await uploadPicture(key, pngFile(64, 64, "to be used"));
    await env.DB.prepare("UPDATE uploads SET expires_at = 5 WHERE id = ?").bind(upload.id).run();
    await generateMiss(key, { seed: seeds++, image: upload.id });
    const row = await env.DB.prepare("SELECT expires_at FROM uploads WHERE id = ?").bind(upload.id).first<{ expires_at: number }>();
    expect(row!.expires_at).toBeGreaterThan(Date.now() + 6 * 24 * 3600_000);
  });
});

describe("what does not fit together is refused by field", () => {
  const unknown = "upl_01JD00000000000000000000ZZ";
  it.each<[string, Record<string, unknown>, string, RegExp]>([
    ["a URL", { image: "https://example.com/a.png" }, "image", /URLs of other servers are not fetched/],
    ["an upload that isn't there", { image: unknown }, "image", /an upload whose file has come/],
    ["broken base64", { image: "data:image/png;base64,!!!" }, "image", /base64/],
    ["text as a picture", { image: `data:image/png;base64,${btoa("hello")}` }, "image", /png, webp, jpeg/],
    ["strength without a picture", { strength: 0.5 }, "strength", /nothing without an image/],
    ["a mask without a picture", { mask: unknown, image: null }, "mask", /an upload/],
    ["mask_blur without a mask", { mask_blur: 3 }, "mask_blur", /0 without a mask/],
    ["outpainting without a picture", { outpaint: { left: 8 } }, "image", /a picture/],
    ["a text request to an inpainting model", { model: "inpainter" }, "image", /inpaint, which the model inpainter does/],
    ["an edit model's guidance elsewhere", { image_guidance_scale: 2 }, "image_guidance_scale", /only an edit model/],
    ["too much clip skip", { clip_skip: 2 }, "clip_skip", /at most 1, as the model pocket allows/],
    ["a second prompt for one encoder", { prompt_2: "y" }, "prompt_2", /one text encoder/],
    ["micro-conditioning of another family", { micro_conditioning: { aesthetic_score: 5 } }, "micro_conditioning", /is sd1/],
    ["a refiner of another family", { refiner: { model: "pocket" } }, "refiner.model", /SDXL/],
    ["an unknown refiner", { refiner: { model: "gone" } }, "refiner.model", /one of/],
    ["a scale that makes odd sizes", { upscale: { scale: 1.01 } }, "upscale.scale", /multiples of 8/],
    [
      "a scale that makes too many pixels",
      { model: "wide", width: 2048, height: 2048, upscale: { scale: 4 } },
      "upscale.scale",
      /16777216 pixels/,
    ],
    ["guidance that ends before it starts", { guidance_interval: [0.5, 0.5] }, "guidance_interval", /a start before the end/],
    ["fewer overrides than pictures", { num_images: 3, per_image: [{}, {}] }, "per_image", /3 items/],
    ["an override that is none", { per_image: [{ steps: 3 }] }, "per_image.0.steps", /no such field/],
    ["a wrong override", { per_image: [{}, { clip_skip: 9 }] }, "per_image.1.clip_skip", /at most 1/],
    [
      "an override's unknown adapter",
      { per_image: [{ adapters: [{ adapter: "gone" }] }] },
      "per_image.0.adapters.0.adapter",
      /GET \/v1\/adapters/,
    ],
  ])("%s", async (_, request, field, expected) => {
    const errors = await errorsOf(request);
    expect(errors.map(error => error.field)).toEqual([field]);
    expect(errors[0]!.expected).toMatch(expected);
  });

  it("a picture for a model that only paints into masks", async () => {
    expect(await errorsOf({ model: "inpainter", image })).toMatchObject([{ field: "mask" }]);
    expect(await errorsOf({ model: "editor", image, strength: 0.5 })).toMatchObject([{ field: "strength" }]);
  });

  it("a file that is no picture in a picture's place", async () => {
    const json = { method: "POST", key, body: safetensorsFile({ face: [1, 4] }), headers: { "content-type": "application/x-safetensors" } };
    const { id } = await (await call("/v1/uploads", json)).json<{ id: string }>();
    expect(await errorsOf({ image: id })).toMatchObject([{ field: "image", expected: "a picture" }]);
  });
});

describe("adapters in a request", () => {
  it("reach the runner by content hash with their settings filled in, and are echoed by id", async () => {
    const bytes = loraFile(96, 2, 40);
    const adapter = await uploadAdapter(key, "watercolour", bytes);
    const { request, inputs, generation } = await planOne({ adapters: [{ adapter: "watercolour", weight: 0.7, end: 0.5 }] });
    expect(request.adapters).toEqual([
      { kind: "lora", adapter: adapter.hash, weight: 0.7, start: 0, end: 0.5, text_encoder_weight: 0.7, dora: null },
    ]);
    const sha256 = await sha256Hex(bytes);
    expect(inputs).toEqual({
      files: [{ sha256, bytes: bytes.length, key: `adapters/${tenant}/${sha256}` }],
      adapters: [{ hash: adapter.hash, files: [{ path: "watercolour.safetensors", sha256, bytes: bytes.length }] }],
    });
    expect(generation.request.adapters).toEqual([
      {
        ...{ adapter: adapter.id, name: "watercolour", version: 1, hash: adapter.hash, kind: "lora" },
        ...{ weight: 0.7, start: 0, end: 0.5, text_encoder_weight: 0.7, dora: null },
      },
    ]);
  });

  it("refuse settings of another kind, a span of nothing, and statements that do not hold", async () => {
    await uploadAdapter(key, "strict", loraFile(96, 2, 41));
    expect(
      await errorsOf({ adapters: [{ adapter: "strict", guess_mode: true, start: 0.5, end: 0.5, kind: "controlnet", version: 2 }] }),
    ).toMatchObject([
      { field: "adapters.0.version", expected: expect.stringMatching(/^1,/) },
      { field: "adapters.0.kind", expected: expect.stringMatching(/^lora,/) },
      { field: "adapters.0.guess_mode", expected: "a setting of lora: weight, start, end, text_encoder_weight, dora" },
      { field: "adapters.0.end", expected: "more than the start, 0.5" },
    ]);
  });
});

describe("per_image", () => {
  it("may say for every picture what the generation as a whole lacks", async () => {
    const planned = await plan({ seed: seeds++, mask, per_image: [{ image }, { image, strength: 0.5 }] });
    expect(planned.map(({ request }) => request.source?.strength)).toEqual([1, 0.5]);
    expect(await errorsOf({ mask, per_image: [{ image }, {}] })).toMatchObject([{ field: "image" }]);
  });

  it("is in the answer again, also where its prompts take the place of equal ones", async () => {
    const job = await generateMiss(key, {
      ...{ model: "xl", seed: seeds++, prompt: "a", prompt_2: "a", negative_prompt: "n", negative_prompt_2: "n" },
      per_image: [{ prompt: "b" }, { negative_prompt: "m" }],
    });
    const { request } = await readGeneration(key, job.id);
    await compute(job.id);
    expect((await generateHit(key, request)).request).toEqual(request);
  });

  it("gives each picture its own prompt, seed, picture and adapters; the rest is shared", async () => {
    const adapter = await uploadAdapter(key, "per-image", loraFile(96, 2, 42));
    const planned = await plan({
      seed: 50,
      guidance_scale: 4,
      per_image: [{ prompt: "one" }, { seed: 7, guidance_scale: 2 }, { image, strength: 0.5, adapters: [{ adapter: "per-image" }] }],
    });
    expect(planned.map(({ request }) => [request.prompt, request.seed, request.guidance_scale])).toEqual([
      ["one", 50, 4],
      ["a red cube", 7, 2],
      ["a red cube", 52, 4],
    ]);
    expect(planned.map(({ request }) => request.source?.strength)).toEqual([undefined, undefined, 0.5]);
    expect(planned.map(({ request }) => request.adapters.length)).toEqual([0, 0, 1]);
    expect(planned.map(({ inputs }) => inputs.files.length)).toEqual([0, 0, 2]);
    expect(planned[0]!.batchKey).toBe(planned[1]!.batchKey);
    const { generation } = planned[0]!;
    expect(generation.request.per_image[2]!.adapters).toMatchObject([{ adapter: adapter.id, name: "per-image" }]);
    expect(generation.pictures.map(({ seed }) => seed)).toEqual([50, 7, 52]);
  });

  it("finds each picture in the cache that was asked for alone", async () => {
    const seed = seeds++;
    const job = await generateMiss(key, { seed, prompt: "alone" });
    await compute(job.id);
    const both = await generateMiss(key, { prompt: "other", per_image: [{ prompt: "alone", seed }, {}] });
    const { pictures } = await readGeneration(key, both.id);
    expect(pictures.map(({ cached }) => cached)).toEqual([true, false]);
  });
});
